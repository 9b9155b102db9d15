"""Runs of blocks: their key slabs hold what the rows may attend to, and only the edges need a bias."""

import re

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.plan import Blocks, Lengths, plan_of
from hf_masking.plan.blocks import Run


def intervals(blocks, run):
    """Return first and stop of each row ``[C, blocks, rows]``, counted from the first key of its slab."""
    slab = run.first_key + torch.arange(run.blocks)[:, None] * run.rows
    rows = slice(run.first_row, run.stop_row)
    return [bound[:, rows].unflatten(1, (run.blocks, run.rows)) - slab for bound in (blocks.first, blocks.stop)]


def test_the_drawing_of_a_block_is_what_it_says():
    rows = re.findall(r"^\s+row (\d)   ([x. ]+)$", Run.__doc__, flags=re.MULTILINE)
    drawn = torch.tensor([[cell == "x" for cell in cells.split()] for _, cells in rows])
    window = parse_mask("window:6")
    q, k = torch.arange(10, 14)[:, None], torch.arange(10 - 5, 14)
    assert torch.equal(drawn, window.allows(q, k))
    everywhere = drawn.all(0).nonzero()[:, 0].tolist()
    assert everywhere == [3, 4, 5], "three columns left and three right of these"


@pytest.mark.parametrize("length", [50, 700, 5000])
@pytest.mark.parametrize(
    "spec",
    ["window:70", "window:256|sinks:4", "strided:16", "causal", "block_local:64,1", "summary:40,3", "log_sparse"],
)
def test_slabs_hold_every_interval_and_edges_every_gap(spec, length):
    touched = 0
    for blocks in plan_of(parse_mask(spec), Lengths(0, length, 0, length)).parts:
        if not isinstance(blocks, Blocks):
            continue
        inside = torch.zeros_like(blocks.first)
        for run in blocks.runs:
            first, stop = intervals(blocks, run)
            kept = (stop.clamp(0, run.width) - first.clamp(0, run.width)).clamp(min=0)
            inside[:, run.first_row : run.stop_row] += kept.flatten(1)
            core = slice(run.left, run.width - run.right)
            assert core.start >= core.stop or (bool((first <= core.start).all()) and bool((stop >= core.stop).all()))
            if run.uniform and run.blocks > 1:
                assert bool((first == first[:, :1]).all()) and bool((stop == stop[:, :1]).all())
            touched += run.pairs * blocks.classes
        assert torch.equal(inside, (blocks.stop - blocks.first).clamp(min=0)), "each allowed pair is in one slab"
    assert touched or spec == "log_sparse"
