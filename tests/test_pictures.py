"""Pictures: colours, names at the ends of lines, SVG beside PNG."""

import pytest
from matplotlib.figure import Figure as Canvas

from hf_masking.comparison.results import Figure
from hf_masking.evaluation.timing import Spread
from hf_masking.pictures import colour_of, draw_figure, draw_spreads, log_scale, write_picture


def test_a_mask_has_one_colour():
    specs = [
        "causal",
        "window:64",
        "window:64|sinks:4",
        "strided:16|window:16",
        "log_sparse",
        "top_blocks:block=16,k=4",
    ]
    assert len({colour_of(spec) for spec in specs}) == len(specs)
    assert colour_of("causal") == (0, 0, 0)
    assert colour_of("window:64") == colour_of("window:64")


def test_names_stand_at_the_ends_of_lines_and_apart(tmp_path):
    kept = []

    def draw(axes):
        kept.append(axes)
        for name, end in {"window:64": 10.0, "causal": 10.01, "_band": 10.0}.items():
            axes.plot([0, 10], [20.0, end], label=name)
        log_scale(axes.yaxis)
        log_scale(axes.xaxis, [1, 2, 4096])

    written = write_picture(tmp_path / "a.png", (6, 3), draw, direct=True)
    assert written == [tmp_path / "a.png", tmp_path / "a.svg"] and all(path.stat().st_size for path in written)
    (axes,) = kept
    assert sorted(text.get_text() for text in axes.texts) == ["causal", "window:64"]
    first, second = sorted(text.xyann[1] for text in axes.texts)
    assert second - first > 8
    assert axes.get_legend() is None
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4,096"]


def test_the_same_figures_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_picture(tmp_path / f"{name}.png", (3, 2), lambda axes: axes.plot([1, 2], [3, 4], label="x"))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("disturbed", [(), (0,), (2,), (4,), (1, 2), (0, 1, 2, 3, 4)])
def test_no_line_goes_through_a_disturbed_point(disturbed):
    axes = Canvas().subplots()
    points = {place: Spread(place + 1.0, place + 0.5, place + 2.0, place in disturbed) for place in range(5)}
    draw_spreads(axes, points, "window:64", "red")
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    assert sorted(place for line in marked for place in line.get_xdata()) == [0, 1, 2, 3, 4]
    for line in marked:
        hollow = line.get_markerfacecolor() == "white"
        assert {place in disturbed for place in line.get_xdata()} == {hollow}
        assert line.get_linestyle() == ("None" if hollow else "-")
    named = [line for line in axes.lines if line.get_label() == "window:64"]
    assert len(named) == 1 and list(named[0].get_xdata())[-1] == 4
    bars = [tuple(segment[:, 1]) for bar in axes.collections for segment in bar.get_segments()]
    assert sorted(bars) == [(place + 0.5, place + 2.0) for place in range(5)]


def test_a_point_has_a_spread_in_both_directions():
    axes = Canvas().subplots()
    draw_figure(axes, Spread(2.0, 1.5, 3.0, True), Figure(10.0, 0.5), "window:64", "red")
    bars = [segment.tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert sorted(bars) == [[[1.5, 10.0], [3.0, 10.0]], [[2.0, 9.5], [2.0, 10.5]]]
    (point,) = (line for line in axes.lines if line.get_marker() == "o")
    assert point.get_markerfacecolor() == "white" and point.get_label() == "window:64"
