"""Pictures: colours, names at the ends of lines, SVG beside PNG."""

from hf_masking.pictures import colour_of, log_scale, write_picture


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
