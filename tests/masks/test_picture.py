"""Masks that show themselves: text, figures, notebooks."""

import base64
import re
import struct
import sys
import zlib

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.masks import SlidingWindow
from hf_masking.masks.picture import KINDS, draw_png, draw_text


def test_text_picture():
    assert draw_text(SlidingWindow(2), 3) == "■ · ·\n■ ■ ·\n· ■ ■"


def panels_of(figure):
    return [torch.tensor(axes.images[0].get_array().tolist()) for axes in figure.axes]


def test_a_plot_has_the_pairs_and_a_legend():
    mask = parse_mask("block_causal:3&window:4")
    figure = mask.plot(9)
    (shown,) = panels_of(figure)
    assert torch.equal(shown >= 2, mask.dense(9))
    assert torch.equal(shown % 2 == 1, torch.ones(9, 9).tril().bool())
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (str(mask), "key", "query")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["future", "excluded", "allowed"]


def test_a_plot_names_what_looks_ahead_and_each_group_of_heads():
    figure = parse_mask("heads[block_causal:3; window:2]").plot(9)
    assert [axes.get_title() for axes in figure.axes] == ["block_causal:3", "window:2"]
    assert "lookahead" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_picture_can_go_without_a_legend(tmp_path):
    draw_png(parse_mask("window:3"), 8, tmp_path / "with.png")
    draw_png(parse_mask("window:3"), 8, tmp_path / "without.png", legend=False)
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'hf-masking[plot]'")):
        parse_mask("window:3").plot()


def pixels_of(page):
    """The pictures of a page, decoded by hand: each a tensor of indices into the palette."""
    for data in re.findall(r"data:image/png;base64,([^\"]+)", page):
        png = base64.b64decode(data)
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        chunks, place = {}, 8
        while place < len(png):
            (size,) = struct.unpack(">I", png[place : place + 4])
            kind, body = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
            assert struct.unpack(">I", png[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
            chunks[kind], place = body, place + 12 + size
        width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
        assert chunks[b"PLTE"].hex() == "".join(color[1:] for color in KINDS.values())
        rows = torch.tensor(list(zlib.decompress(chunks[b"IDAT"]))).view(height, width + 1)
        assert not rows[:, 0].any()
        yield rows[:, 1:]


def test_a_notebook_shows_the_mask_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    mask = parse_mask("window:9|block_causal:4")
    page = mask._repr_html_()
    (pixels,) = pixels_of(page)
    assert torch.equal(pixels >= 2, mask.dense(64))
    assert f"<code>{mask}</code>" in page
    assert "&lt;" not in page


def test_a_notebook_shows_each_group_of_heads_and_says_what_is_unmarked():
    mask = parse_mask("heads[prefix|causal; window:3]")
    page = mask._repr_html_()
    for pixels, member in zip(pixels_of(page), mask.unmarked.heads, strict=True):
        assert torch.equal(pixels >= 2, member.dense(64))
    assert "<code>prefix|causal</code>" in page
    assert "no tokens marked" in page
    assert "no tokens marked" not in parse_mask("causal")._repr_html_()


def test_a_notebook_prints_an_adaptive_mask():
    assert parse_mask("relevance|sinks:1")._repr_html_() is None
