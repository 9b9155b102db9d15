"""README.md: it is short, its snippets run, its catalogue is whole, its numbers are those of the committed figures."""

import json
import re
import statistics
from pathlib import Path

import pytest

from hf_masking.adaptive import ADAPTIVE
from hf_masking.masks import PATTERNS
from hf_masking.modeling.checking.generation import MODES

from .snippets import blocks, commands, run_small
from .test_benchmarks import cells, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_is_short_and_begins_with_a_picture():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert any("<img" in line for line in lines[:20])


def test_the_numbers_are_those_of_the_figures():
    assert f"compares {len(MODES)} ways to generate" in " ".join(README.split())
    figures = json.loads((ROOT / "docs" / "bench.json").read_text())["rows"]
    times = {
        (row["mask"], row["backend"]): statistics.median(row["both_seconds"])
        for row in figures
        if row["length"] == 8192 and row["both_seconds"]
    }
    dense, sparse = times["causal", "sdpa is_causal"], times["window:256", "auto"]
    said = f"takes {sparse * 1e3:.0f} ms where PyTorch's causal attention takes {dense * 1e3:,.0f} ms: "
    assert said + f"{dense / sparse:.1f} times faster" in " ".join(README.split())


def test_the_price_of_a_window_is_that_of_the_report():
    report = [cells(line) for line in (ROOT / "docs" / "compare" / "report.md").read_text().splitlines()]
    first, second = (row for row in report if row[:1] == [r"`window:64\|sinks:4`"])
    assert (first[1], second[1].split("%")[0]) == ("24.8%", "+1.28")
    assert "`window:64|sinks:4` raises perplexity by 1.3% at a quarter of the pairs" in " ".join(README.split())


def test_the_table_of_generation_is_a_part_of_the_whole_one():
    shown = table("generation", README)
    assert shown == [row for row in table("generation") if row[0] == "32,768"] and len(shown) == 3


def test_python(workplace):
    namespace = {}
    assert blocks(README, "python")
    for _, block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), namespace)


SHELL = [command for _, block in blocks(README, "bash") for command in commands(block)]


@pytest.mark.parametrize("command", SHELL)
def test_shell(command, run, workplace):
    run_small(run, command)


def test_the_catalogue_is_whole():
    for name in PATTERNS:
        assert f"docs/masks/{name}.png" in README, name
    for name in ADAPTIVE:
        assert f"docs/masks/{name}.png" in README, name
    for picture in re.findall(r"docs/[a-z_/]+\.png", README):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG"), picture
