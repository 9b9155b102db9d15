"""Every snippet of README.md runs, and every example does."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from hf_masking.adaptive import ADAPTIVE
from hf_masking.masks import PATTERNS

from .processes import PYTHON, launch
from .snippets import blocks, commands, run_small

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
        assert re.search(rf"^\| `{name}\b", README, flags=re.MULTILINE), name
    for picture in re.findall(r"docs/[a-z_/]+\.png", README):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG"), picture


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize(
    ("table", "source", "key"),
    [
        (README.split("<!-- bench -->")[1].split("<!-- /bench -->")[0], "docs/bench.md", 3),
        (README.split("<!-- recall -->")[1].split("<!-- /recall -->")[0], "docs/top_blocks_recall.md", 2),
    ],
)
def test_tables_are_those_of_the_figures(table, source, key):
    measured = [cells(line) for line in (ROOT / source).read_text().splitlines() if line.startswith("|")]
    shown = [cells(line) for line in table.splitlines() if line.startswith("|") and not line.startswith("|--")]
    assert len(shown) > 2
    for row in shown[1:]:
        (same,) = (other for other in measured if other[:key] == row[:key])
        assert set(row) <= set(same), row


def test_the_comparison_is_that_of_its_report():
    shown = README.split("<!-- compare -->\n")[1].split("<!-- /compare -->")[0]
    report = ROOT / "docs" / "compare"
    assert shown in (report / "report.md").read_text()
    figures = json.loads((report / "report.json").read_text())
    tried = {(trial["mask"], trial["seed"]) for trial in figures["trials"]}
    masks = {mask for mask, _ in tried}
    assert len(masks) >= 8 and tried == {(mask, seed) for mask in masks for seed in range(3)}
    named = shlex.split(README.split("hf-masking compare runs/base")[1].split("```")[0].replace("\\\n", " "))
    assert {value for option, value in itertools.pairwise(named) if option == "--mask"} == masks


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples(example):
    # Some take a size; what they show at their own takes a minute or some.
    sizes = {"long_context.py": ["3000"], "streaming_generation.py": ["1000"], "prefix_lm_summarization.py": ["20"]}
    sizes |= {"adaptive_span.py": ["20"], "top_blocks_recall.py": ["20"]}
    assert launch(f"examples/{example}", *sizes.get(example, []), launcher=PYTHON, PYTHONWARNINGS="error").stdout


def test_the_table_of_generation_is_that_of_its_figures():
    figures = json.loads((ROOT / "docs" / "bench_generation.json").read_text())["rows"]
    table = README.split("<!-- generation -->")[1].split("<!-- /generation -->")[0]
    shown = [cells(line) for line in table.splitlines() if line.startswith("|")][2:]
    assert len(shown) == len(figures)
    for row, figure in zip(shown, figures, strict=True):
        assert figure["cache"] in row[1].replace("\\", "")
        assert row[0] == f"{figure['context']:,}" and row[2] == f"{figure['milliseconds_per_token']:,.1f}"
        assert row[3] == f"{figure['tokens_per_second']:.1f}" and row[4] == f"{figure['cache_bytes'] / 2**20:,.1f}"


def test_the_table_of_masks_that_look_at_the_content_is_that_of_its_figures():
    figures = json.loads((ROOT / "docs" / "bench_adaptive.json").read_text())["rows"]
    table = README.split("<!-- adaptive -->")[1].split("<!-- /adaptive -->")[0]
    shown = [cells(line) for line in table.splitlines() if line.startswith("|")][2:]
    assert len(shown) == len(figures)
    for row, figure in zip(shown, figures, strict=True):
        assert row[0].strip("`") == figure["mask"]
        assert row[1:3] == [figure["what"], f"{figure['length']:,}"]
        assert row[3:5] == [f"{figure['seconds'] * 1e3:,.1f}", f"{figure['times_dense']:.2f}"]


def test_the_benchmark_of_masks_that_look_at_the_content_runs(tmp_path):
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
