"""`hf-masking bench`: rows that fail, and pictures that cannot be drawn."""

import importlib.util
import json

import pytest

from hf_masking import pictures
from hf_masking.cli import bench, bench_report
from hf_masking.evaluation.benchmark import IS_CAUSAL, Row
from hf_masking.evaluation.timing import DISTURBED


def test_failures_stand_below_the_table():
    row = Row(64, "causal", "flex", 10, error="no compiler")
    (cells,) = bench_report.grid([row]).rows
    assert "failed" in cells and "no compiler" not in " ".join(cells)
    assert bench_report.notes([row]) == ["causal by flex, 64 tokens, failed: no compiler"]


def disturbed_at(length):
    """Return four lengths of two masks; at one length only two rounds of `window:64` were quiet."""
    rows = []
    for n in (64, 128, 256, 512):
        rows.append(Row(n, "causal", IS_CAUSAL, 10, forward_seconds=[1.0] * 3, both_seconds=[4.0] * 3, quiet_rounds=3))
        quiet = 2 if n == length else 3
        seconds = {"forward_seconds": [0.5] * 3, "both_seconds": [2.0] * 3, "quiet_rounds": quiet}
        rows.append(Row(n, "window:64", "auto", 10, ran="blockwise", **seconds))
    return rows


def test_disturbed_points_are_marked_in_the_table():
    grid = bench_report.grid(disturbed_at(256))
    assert [row[3:6] for row in grid.rows if row[1] == "window:64"] == [
        ["500.0", "2,000", "2.0x / 2.0x"],
        ["500.0", "2,000", "2.0x / 2.0x"],
        ["500.0*", "2,000*", "2.0x* / 2.0x*"],
        ["500.0", "2,000", "2.0x / 2.0x"],
    ]
    assert bench_report.notes(disturbed_at(256)) == [DISTURBED] and bench_report.notes(disturbed_at(None)) == []


def test_no_line_of_the_picture_goes_through_a_disturbed_point(monkeypatch, tmp_path):
    kept, plain = [], pictures.write_picture

    def write_picture(path, size, draw, **more):
        return plain(path, size, lambda axes: (kept.append(axes), draw(axes)), **more)

    monkeypatch.setattr(pictures, "write_picture", write_picture)
    assert len(bench_report.write_picture(tmp_path / "a.png", disturbed_at(256), "title")) == 2
    (axes,) = kept
    drawn = {tuple(line.get_xdata()): line for line in axes.lines if line.get_marker() == "o"}
    assert set(drawn) == {(64, 128, 256, 512), (64, 128), (256,), (512,)}
    assert drawn[256,].get_linestyle() == "None" and drawn[256,].get_markerfacecolor() == "white"
    assert {text.get_text() for text in axes.texts} == {IS_CAUSAL, "window:64"}


def test_verdicts_ignore_disturbed_points():
    rows = disturbed_at(64)
    rows[1].both_seconds = [9.0] * 3
    assert list(bench._verdicts(rows)) == [
        f"window:64: breaks even at 128 tokens (forward and backward, against {IS_CAUSAL})"
    ]
    for row in rows:
        row.quiet_rounds = 0
    assert "not known, every measurement was disturbed" in next(bench._verdicts(rows))


def test_lengths_that_were_measured_survive_one_that_fails(run, monkeypatch, tmp_path):
    plain = bench.measure

    def measure(shape, contenders, rounds):
        if shape.length == 32:
            raise MemoryError("no more")
        return plain(shape, contenders, rounds)

    monkeypatch.setattr(bench, "measure", measure)
    small = ("--heads", "1", "--head-size", "4", "--rounds", "1", "--mask", "causal", "--output", tmp_path / "x.json")
    code, out, _ = run("bench", "--length", "16", "--length", "32", *small)
    assert code == 1
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert {(row["length"], row["error"]) for row in rows} == {(16, None), (32, "MemoryError: no more")}
    assert "causal by auto, 32 tokens, failed: MemoryError: no more" in out


@pytest.mark.parametrize("present", [True, False])
def test_missing_pictures_are_announced(present, caplog, monkeypatch, tmp_path):
    found = importlib.util.find_spec("matplotlib") if present else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    pictures.warn_of_no_pictures()
    assert [record.message for record in caplog.records] == [
        "no pictures will be drawn: they need matplotlib; pip install 'hf-masking[plot]'"
    ] * (not present)


def test_a_picture_is_refused_before_anything_without_matplotlib(run, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = run("show", "causal", "--png", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert err == "error: --png needs matplotlib; pip install 'hf-masking[plot]'\n"


def test_dollars_in_a_title_are_no_formula(tmp_path):
    pictures.write_picture(
        tmp_path / "a.png", (2, 2), lambda axes: axes.set_title(pictures.plain("a$b$")) and axes.plot(0)
    )
    assert (tmp_path / "a.png").exists()
