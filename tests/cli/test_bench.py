"""`hf-masking bench`: rows that fail, and pictures that cannot be drawn."""

import importlib.util
import json

import pytest

from hf_masking import pictures
from hf_masking.cli import bench, bench_report
from hf_masking.evaluation.benchmark import Row


def test_failures_stand_below_the_table():
    row = Row(64, "causal", "flex", 10, error="no compiler")
    (cells,) = bench_report.grid([row]).rows
    assert "failed" in cells and "no compiler" not in " ".join(cells)
    assert bench_report.failures([row]) == ["causal by flex, 64 tokens, failed: no compiler"]


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
