"""Intervals of keys: against brute force, and for masks that are too irregular."""

import pytest
import torch
from hypothesis import given, settings

from hf_masking import parse_mask
from hf_masking.masks import intervals
from hf_masking.masks.intervals import MAX_PIECES, TooIrregularError

from .oracle import COLUMNS, ROWS, brute_force, matrix
from .strategies import expressions

EVENS = "offsets:" + ",".join(map(str, range(0, 4 * MAX_PIECES, 2)))


@pytest.mark.parametrize("spec", [f"causal-{EVENS}", f"causal-{EVENS}-window:3"])
def test_a_mask_of_too_many_pieces_is_one_guarded_piece(spec):
    mask, q = parse_mask(spec), torch.arange(4 * MAX_PIECES)
    (piece,) = mask.intervals(q)
    assert len(piece.guards) == 1
    k = q[None, :]
    inside = (k >= piece.first[:, None]) & (k < piece.stop[:, None]) & piece.guards[0].allows(q[:, None], k)
    assert torch.equal(inside, matrix(mask, range(len(q)), range(len(q))))


def test_too_many_pieces_are_never_a_list_cut_short():
    q = torch.arange(4 * MAX_PIECES)
    holes = parse_mask(EVENS)
    with pytest.raises(TooIrregularError):
        intervals.subtract(parse_mask("causal").intervals(q), holes.intervals(q), holes)
    with pytest.raises(TooIrregularError):
        intervals.limited(holes.intervals(q)[:1] * (MAX_PIECES + 1))


def pairs_of(piece, q, k):
    """The pairs of one piece, one condition at a time."""
    lattice = piece.lattice
    inside = (k >= piece.first[:, None]) & (k < piece.stop[:, None])
    inside &= ((q - k) % lattice.stride == 0) & lattice.keys.contains(k)
    for guard in piece.guards:
        inside &= guard.allows(q, k)
    return inside


@given(expressions)
@settings(max_examples=2000)
def test_intervals_are_disjoint_and_their_union_is_the_mask(mask):
    q, k = torch.arange(ROWS)[:, None], torch.arange(COLUMNS)[None, :]
    covered = sum((pairs_of(piece, q, k).int() for piece in mask.intervals(q[:, 0])), torch.zeros(ROWS, COLUMNS).int())
    assert torch.equal(covered, brute_force(mask).int())


@pytest.mark.parametrize(
    "spec",
    [
        "window:16|sinks:4",
        "strided:8|window:8",
        "sinks:3|strided:5",
        "causal-window:7",
        "dilated:4,6|window:5|sinks:2",
        "summary:7,2|window:9",
        "strided:4&strided:6",
        "log_sparse|sinks:2",
        "block_local:12,1|summary:12,3",
        "block_causal:6&window:9",
        "causal-block_local:5",
    ],
)
def test_the_compositions_that_people_use_need_no_guard(spec):
    assert all(not piece.guards for piece in parse_mask(spec).intervals(torch.arange(ROWS)))
