"""What a mask looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .mask import Mask, MaskExpression
from .patterns import Causal


def draw_text(mask: Mask, length: int, *, allowed: str = "■", excluded: str = "·") -> str:
    """The mask over ``length`` positions, one row a query."""
    rows = mask.dense(length).tolist()
    return "\n".join(" ".join(allowed if pair else excluded for pair in row) for row in rows)


def draw_weights_text(weights: Tensor, *, allowed: str = "■", between: str = "▒", excluded: str = "·") -> str:
    """Weights from 0 to 1, ``[queries, keys]``, one row a query."""
    signs = {0.0: excluded, 1.0: allowed}
    return "\n".join(" ".join(signs.get(weight, between) for weight in row) for row in weights.tolist())


def draw_png(mask: MaskExpression, length: int, path: Path) -> None:
    """Writes the mask over ``length`` positions as a picture (needs the extra ``plot``)."""
    figure, panels = _figure(len(mask.heads))
    from matplotlib import colors

    shades = colors.ListedColormap(["#ffffff", "#dfe6ee", "#d1495b", "#1f4e79"])
    for axes, member in zip(panels, mask.heads, strict=True):
        # Four shades: the future, the past that is left out, the future that is allowed, the past that is allowed.
        shade = member.dense(length).int() * 2 + Causal().dense(length).int()
        axes.imshow(shade.tolist(), cmap=shades, vmin=0, vmax=3)
        axes.set(title=str(member), xlabel="key", ylabel="query", xticks=[0, length - 1], yticks=[0, length - 1])
        axes.tick_params(length=0)
    figure.savefig(path, format="png")


def draw_weights_png(weights: Tensor, title: str, path: Path) -> None:
    """Writes weights from 0 to 1, ``[queries, keys]``, as a picture (needs the extra ``plot``)."""
    figure, (axes,) = _figure(1)
    last = weights.shape[0] - 1
    axes.imshow(weights.tolist(), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="key", ylabel="query", xticks=[0, last], yticks=[0, last])
    axes.title.set_fontsize("small")
    axes.tick_params(length=0)
    figure.savefig(path, format="png")


def _figure(panels: int) -> tuple[Any, Any]:
    """A figure, and its axes side by side."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a picture needs matplotlib; pip install 'hf-masking[plot]'") from None
    figure = Figure(figsize=(4 * panels, 4.3), dpi=150, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]
