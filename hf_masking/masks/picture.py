"""Draw masks: as text, as a matplotlib figure, and as a small picture in a notebook."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .mask import Mask, MaskExpression

# What a pair can be, in the order of `_kinds`, and its color.
KINDS = {
    "future": "#ffffff",
    "excluded": "#dfe6ee",
    "lookahead": "#d1495b",
    "allowed": "#1f4e79",
}
_NOTEBOOK = 64  # positions that a notebook shows
_WIDTH = 192  # pixels of a picture in a notebook


def draw_text(mask: Mask, length: int, *, allowed: str = "■", excluded: str = "·") -> str:
    """Return the mask over ``length`` positions as text, one row per query."""
    rows = mask.dense(length).tolist()
    return "\n".join(" ".join(allowed if pair else excluded for pair in row) for row in rows)


def draw_weights_text(weights: Tensor, *, allowed: str = "■", between: str = "▒", excluded: str = "·") -> str:
    """Return weights from 0 to 1, ``[queries, keys]``, as text, one row per query."""
    signs = {0.0: excluded, 1.0: allowed}
    return "\n".join(" ".join(signs.get(weight, between) for weight in row) for row in weights.tolist())


def plot(mask: MaskExpression, length: int, *, legend: bool = True) -> Any:
    """Return a matplotlib figure of the mask over ``length`` positions, one panel per group of heads.

    Raises:
        ValueError: matplotlib is not installed (extra ``plot``).
    """
    figure, panels = _figure(len(mask.heads))
    from matplotlib import colors, patches

    shades = colors.ListedColormap(list(KINDS.values()))
    drawn = [_kinds(member, length) for member in mask.heads]
    for axes, member, kinds in zip(panels, mask.heads, drawn, strict=True):
        axes.imshow(kinds.tolist(), cmap=shades, vmin=0, vmax=3)
        axes.set(title=str(member), xlabel="key", ylabel="query", xticks=[0, length - 1], yticks=[0, length - 1])
        axes.tick_params(length=0)
    if legend:
        there = {int(kind) for kinds in drawn for kind in kinds.unique()}
        handles = [
            patches.Patch(facecolor=color, edgecolor="#8a97a6", linewidth=0.5, label=name)
            for index, (name, color) in enumerate(KINDS.items())
            if index in there
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    return figure


def draw_png(mask: MaskExpression, length: int, path: Path, *, legend: bool = True) -> None:
    """Write the mask over ``length`` positions as a picture; like `plot`, it needs the extra ``plot``."""
    plot(mask, length, legend=legend).savefig(path, format="png")


def draw_weights_png(weights: Tensor, title: str, path: Path) -> None:
    """Write weights from 0 to 1, ``[queries, keys]``, as a picture; needs the extra ``plot``."""
    figure, (axes,) = _figure(1)
    last = weights.shape[0] - 1
    axes.imshow(weights.tolist(), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="key", ylabel="query", xticks=[0, last], yticks=[0, last])
    axes.title.set_fontsize("small")
    axes.tick_params(length=0)
    figure.savefig(path, format="png")


def as_html(mask: MaskExpression) -> str:
    """Return the first positions of a static mask as inline pictures with the spec as caption; no matplotlib needed."""
    note = f"first {_NOTEBOOK} positions" + (", no tokens marked" if mask.needs else "")
    panels = []
    for member, shown in zip(mask.heads, mask.unmarked.heads, strict=True):
        png = _png(_kinds(shown, _NOTEBOOK).tolist(), list(KINDS.values()))
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        style = f"width:{_WIDTH}px;image-rendering:pixelated;border:1px solid #8a97a6"
        caption = f"<figcaption><code>{html.escape(str(member))}</code></figcaption>"
        panels.append(
            f'<figure style="margin:0"><img style="{style}" src="{source}" title="{note}"/>{caption}</figure>'
        )
    return f'<div style="display:flex;gap:16px">{"".join(panels)}</div>'


def _kinds(mask: Mask, length: int) -> Tensor:
    """Return the index into KINDS of every pair ``[length, length]``."""
    past = torch.ones(length, length, dtype=torch.bool).tril()
    return mask.dense(length).int() * 2 + past.int()


def _png(rows: Sequence[Sequence[int]], palette: Sequence[str]) -> bytes:
    """Return a PNG whose pixels are indices into a palette of colors such as ``#1f4e79``."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    colors = b"".join(bytes.fromhex(color.removeprefix("#")) for color in palette)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))  # each row begins with its filter: none
    chunks = [(b"IHDR", header), (b"PLTE", colors), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunks(chunks))


def _chunks(chunks: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for kind, data in chunks:
        yield struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _figure(panels: int) -> tuple[Any, Any]:
    """Return a figure, and its axes side by side."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a picture needs matplotlib; pip install 'hf-masking[plot]'") from None
    figure = Figure(figsize=(4 * panels, 4.3), dpi=150, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]
