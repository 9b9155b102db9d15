"""docs/benchmarks.md: its tables are those of the committed figures, and its scripts run."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from .processes import PYTHON, launch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()


def table(name, page=PAGE):
    """Return the rows between two marks, without the head."""
    lines = page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].splitlines()
    return [cells(line) for line in lines if line.startswith("|")][2:]


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize(
    ("name", "source", "key"), [("bench", "docs/bench.md", 3), ("recall", "docs/top_blocks_recall.md", 2)]
)
def test_tables_are_those_of_the_figures(name, source, key):
    measured = [cells(line) for line in (ROOT / source).read_text().splitlines() if line.startswith("|")]
    shown = table(name)
    assert len(shown) > 2
    for row in shown:
        (same,) = (other for other in measured if other[:key] == row[:key])
        assert set(row) <= set(same), row


def test_the_comparison_is_that_of_its_report():
    shown = PAGE.split("<!-- compare -->\n")[1].split("<!-- /compare -->")[0]
    report = ROOT / "docs" / "compare"
    assert shown in (report / "report.md").read_text()
    figures = json.loads((report / "report.json").read_text())
    tried = {(trial["mask"], trial["seed"]) for trial in figures["trials"]}
    masks = {mask for mask, _ in tried}
    assert len(masks) >= 8 and tried == {(mask, seed) for mask in masks for seed in range(3)}
    named = shlex.split(PAGE.split("hf-masking compare runs/base")[1].split("```")[0].replace("\\\n", " "))
    assert {value for option, value in itertools.pairwise(named) if option == "--mask"} == masks


def test_the_table_of_generation_is_that_of_its_figures():
    figures = json.loads((ROOT / "docs" / "bench_generation.json").read_text())["rows"]
    shown = table("generation")
    assert len(shown) == len(figures)
    for row, figure in zip(shown, figures, strict=True):
        assert figure["cache"] in row[1].replace("\\", "")
        assert row[0] == f"{figure['context']:,}" and row[2] == f"{figure['milliseconds_per_token']:,.1f}"
        assert row[3] == f"{figure['tokens_per_second']:.1f}" and row[4] == f"{figure['cache_bytes'] / 2**20:,.1f}"


def test_the_table_of_adaptive_masks_is_that_of_its_figures():
    figures = json.loads((ROOT / "docs" / "bench_adaptive.json").read_text())["rows"]
    shown = table("adaptive")
    assert len(shown) == len(figures)
    for row, figure in zip(shown, figures, strict=True):
        assert row[0].strip("`") == figure["mask"]
        assert row[1:3] == [figure["what"], f"{figure['length']:,}"]
        assert row[3:5] == [f"{figure['seconds'] * 1e3:,.1f}", f"{figure['times_dense']:.2f}"]


def test_the_tables_of_sequence_parallelism_are_those_of_their_figures():
    figures = json.loads((ROOT / "docs" / "bench_sequence_parallel.json").read_text())
    shown = table("sequence-bytes")
    assert len(shown) == len(figures["bytes"])
    for row, figure in zip(shown, figures["bytes"], strict=True):
        assert row[0].strip("`").replace("\\", "") == figure["mask"]
        assert figure["predicted"] == figure["counted"]
        predicted, counted = (f"{sum(figure[name]) / 2**20:,.1f}" for name in ("predicted", "counted"))
        assert row[1:] == [predicted, counted, f"{figure['share']:.1%}"]
    shown, steps = table("sequence-memory"), figures["steps"]
    whole = max(steps[0]["peak_bytes"])
    assert len(shown) == len(steps)
    for row, step in zip(shown, steps, strict=True):
        peak = max(step["peak_bytes"])
        assert [row[0], *row[2:]] == [str(step["processes"]), f"{peak / 2**20:,.0f}", f"{peak / whole:.1%}"]


def test_the_benchmark_of_adaptive_masks_runs(tmp_path):
    output = tmp_path / "figures.json"
    small = ["--choice-length", "1000", "--span-length", "1000", "--context", "1000", "--rounds", "1"]
    launch("scripts/bench_adaptive.py", *small, "--output", output, launcher=PYTHON)
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 9
    assert all(row["seconds"] > 0 for row in rows)
    assert all(row["computed_over_allowed"] >= 1 for row in rows if row["computed_over_allowed"] is not None)


def test_the_benchmark_of_decoding_runs(tmp_path):
    output = tmp_path / "figures.json"
    small = ["--context", "40", "--rounds", "1", "--steps", "3", "--layers", "1", "--width", "64"]
    launch("scripts/bench_generation.py", *small, "--output", output, launcher=PYTHON)
    rows = json.loads(output.read_text())["rows"]
    assert [row["cache"] for row in rows] == ["window:256|sinks:4", "dynamic cache", "static cache"]
    assert all(row["milliseconds_per_token"] > 0 and row["cache_bytes"] > 0 for row in rows)


@pytest.mark.slow
def test_the_benchmark_of_sequence_parallelism_runs(tmp_path):
    output = tmp_path / "figures.json"
    small = ["--tokens", "512", "--step-tokens", "512", "--layers", "1", "--width", "64", "--vocabulary", "99"]
    launch("scripts/bench_sequence_parallel.py", *small, "--output", output, launcher=PYTHON)
    figures = json.loads(output.read_text())
    assert all(row["predicted"] == row["counted"] for row in figures["bytes"])
    losses = [step["loss"] for step in figures["steps"]]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
