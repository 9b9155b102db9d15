"""Tables fit 80 and 120 columns: no cell is cut, and no spec is wrapped."""

import json
from pathlib import Path

import pytest

from hf_masking.cli import bench_report, terminal
from hf_masking.comparison.report import Report
from hf_masking.comparison.speed import Speeds
from hf_masking.comparison.trials import Trial
from hf_masking.evaluation.benchmark import Row
from hf_masking.evaluation.timing import Timing
from hf_masking.tables import Grid

DOCS = Path(__file__).parents[2] / "docs"
SPECS = ["causal", "window:4|sinks:1|block_local:8,1", "heads[window:4|sinks:1; causal]"]


def report():
    """The committed comparison: ten masks, three seeds."""
    kept = json.loads((DOCS / "compare" / "report.json").read_text())
    fields = Trial.__dataclass_fields__
    for trial in kept["trials"]:
        trial["recovery"] = {int(step): value for step, value in trial["recovery"].items()}
    trials = [Trial(**{name: value for name, value in trial.items() if name in fields}) for trial in kept["trials"]]
    masks = list(dict.fromkeys(trial.mask for trial in trials))
    timing = Timing((1.0, 1.5, 2.0), 2)  # disturbed, which takes most room
    timings = dict.fromkeys(masks, timing)
    return Report(
        "title", len(trials[0].by_position), masks, trials, Speeds(timings, timings, timings), kept["break_even"], 4096
    )


def bench():
    """The committed benchmark of attention."""
    kept = json.loads((DOCS / "bench.json").read_text())["rows"]
    return [Row(**{name: row[name] for name in Row.__dataclass_fields__ if name in row}) for row in kept]


def check(grid, width):
    text = grid.text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width, text
    words = text.split()
    for row in grid.rows:
        for cell in row:
            assert set(cell.split()) <= set(words), cell
    for heading in grid.headings:
        assert set(heading.split()) <= set(words), heading
    return lines


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["quality", "speed", "positions", "bench"])
def test_the_committed_tables_fit(name, width):
    grid = bench_report.grid(bench()) if name == "bench" else getattr(report(), name)()
    lines = check(grid, width)
    if name != "bench" and width == 120:
        assert len(lines) == len(grid.rows) + 3, "one line per row"


def test_labels_stand_above_figures_that_do_not_fit_beside_them():
    grid = Grid(("mask", "long\nheading", "b"), [["window:256|sinks:4", "1", "2"], ["causal", "33", "44"]])
    assert grid.text(40).splitlines() == [
        "                       long", "mask                heading   b", "------------------  -------  --",
        "window:256|sinks:4        1   2", "causal                   33  44",
    ]  # fmt: skip
    assert grid.text(20).splitlines() == [
        "mask", "     long", "  heading   b", "  -------  --", "window:256|sinks:4", "        1   2", "causal",
        "       33  44",
    ]  # fmt: skip
    assert grid.text(10).split("\n\n")[1].splitlines() == [
        "mask", "   b", "  --", "window:256|sinks:4", "   2", "causal", "  44"
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_eval_and_check_at_a_width(run, model_folder, text_file, monkeypatch, width):
    monkeypatch.setattr(terminal.console, "width", width)
    masks = [argument for spec in SPECS for argument in ("--mask", spec)]
    code, out, err = run("eval", model_folder, *masks, "--data", text_file, "--context", "64", "--max-tokens", "200")
    assert code == 0, err
    assert max(map(len, out.splitlines()[1:])) <= width and "\r" not in out + err
    assert all(f"\n{spec}" in out for spec in SPECS)
    code, out, err = run("check", model_folder, "--mask", SPECS[1], "--length", "9")
    assert code == 0 and f"{SPECS[1]}: all rows pass\n" in out
    assert all(line.split()[0] in ("ok", "not") for line in out.splitlines()[3:] if line)
