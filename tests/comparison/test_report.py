"""The tables and pictures of a comparison."""

import json

import pytest

from hf_masking.comparison import report as module
from hf_masking.comparison.report import Report
from hf_masking.comparison.speed import Speeds
from hf_masking.evaluation.timing import DISTURBED, Timing

from .make import trial

MASKS = ["causal", "window:3", "sinks:2"]


@pytest.fixture
def report():
    training = {
        "causal": Timing((0.5, 0.5, 0.5), 3),
        "window:3": Timing((0.25, 0.2, 0.25), 3),
        "sinks:2": Timing((0.25, 0.25, 0.25), 2),
    }
    evaluation = {"causal": Timing((0.25,) * 3, 3)}
    decoding = {"window:3": Timing((0.004, 0.004, 0.004), 3), "sinks:2": Timing((0.001, 0.005, 0.009), 3)}
    measured = {"by_position": tuple(float(i) for i in range(64)), "peak_memory_bytes": 3 * 2**20}
    trials = [
        trial(mask, seed, 9.0, 4.0 + seed, cache_bytes=2**19, full_cache_bytes=2**20, **measured)
        for mask in MASKS
        for seed in range(2)
    ]
    speeds = Speeds(training, evaluation, decoding)
    return Report("title", 64, MASKS, trials, speeds, {"causal": None, "window:3": 512}, 4096)


def test_speeds_are_over_the_first_mask(report):
    assert [list(row) for row in report.speed().rows] == [
        ["causal", "2 tokens/s", "4 tokens/s", "-", "> 4,096"],
        ["window:3", "2.00x (2.00-2.25)", "-", "4.00", "512"],
        ["sinks:2", "2.00x (2.00-2.00)*", "-", "5.00*", "-"],
    ]
    assert report.notes() == [DISTURBED]


def test_quality_and_losses_by_position(report):
    assert report.quality().rows[1] == ["window:3", "-", "9.00", "4.50 ± 0.71", "+0.00% ± 0.00%", "3", "0.5", "50%"]
    assert report.positions().headings == (
        "mask", "loss at\n0-1", "loss at\n2-3", "loss at\n4-7", "loss at\n8-15", "loss at\n16-31", "loss at\n32-63"
    )  # fmt: skip
    assert report.positions().rows[0][1:4] == ["0.500", "2.500", "5.500"]


def test_the_document_holds_what_the_tables_were_computed_from(report):
    document = json.loads(json.dumps(report.document()))
    window = document["speeds"]["training"]["window:3"]
    assert window["speed_up"] == {"median": 2.0, "low": 2.0, "high": 2.25, "disturbed": False}
    assert window["tokens_per_second"]["median"] == 4.0 and window["seconds_per_token"] == [0.25, 0.2, 0.25]
    assert document["break_even"] == {"causal": None, "window:3": 512}


def test_the_picture_has_a_spread_and_marks_what_was_disturbed(report, monkeypatch, tmp_path):
    kept, plain = {}, module.write_picture

    def write_picture(path, size, draw, **more):
        return plain(path, size, lambda axes: (kept.update({path.stem: axes}), draw(axes)), **more)

    monkeypatch.setattr(module, "write_picture", write_picture)
    written = {path.name for path in report.write(tmp_path)}
    assert written == {"report.json", "report.md"} | {
        f"{name}.{kind}" for name in ("speed", "recovery", "positions") for kind in ("png", "svg")
    }
    points = {line.get_label(): line for line in kept["speed"].lines if line.get_marker() == "o"}
    assert {name: line.get_xdata()[0] for name, line in points.items()} == {"causal": 1, "window:3": 2, "sinks:2": 2}
    assert {name for name, line in points.items() if line.get_markerfacecolor() == "white"} == {"sinks:2"}
    assert len(kept["speed"].collections) == 2 * len(MASKS), "bars in both directions"
    assert kept["positions"].get_xscale() == "log"
