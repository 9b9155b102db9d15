"""Draw figures with matplotlib, where it is installed."""

from __future__ import annotations

import colorsys
import hashlib
import importlib.util
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import written_aside

if TYPE_CHECKING:
    from .comparison.results import Figure
    from .evaluation.timing import Spread

logger = logging.getLogger("hf_masking")
_LABEL_HEIGHT, _LABEL_WIDTH = 10, 120  # points; labels within this distance are moved apart


def plain(text: str) -> str:
    """Return a text for matplotlib in which dollar signs stand for themselves."""
    return text.replace("$", r"\$")


def warn_of_no_pictures() -> None:
    """Log a warning, before anything is measured, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no pictures will be drawn: they need matplotlib; pip install 'hf-masking[plot]'")


def colour_of(mask: str) -> tuple[float, float, float]:
    """Return the colour of a mask, the same in every picture; full attention is black."""
    if mask == "causal":
        return (0.0, 0.0, 0.0)
    digest = hashlib.sha256(mask.encode()).digest()
    return colorsys.hls_to_rgb(int.from_bytes(digest[:2], "big") / 2**16, (0.28, 0.4, 0.5)[digest[2] % 3], 0.75)


def write_picture(
    path: Path, size: tuple[float, float], draw: Callable[[Any], None], *, direct: bool = False
) -> list[Path]:
    """Write a figure whose axes ``draw`` fills, as PNG and beside it as SVG.

    Parameters:
        path: the path of the PNG.
        direct: write each name at the end of its line, instead of a legend beside the axes.

    Returns:
        The paths that were written; none without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    if direct:
        _name_lines(figure, axes)
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    written = [path, path.with_suffix(".svg")]
    for target in written:
        kind = target.suffix.removeprefix(".")
        # The same figures give the same file.
        with rc_context({"svg.hashsalt": "hf-masking"}), written_aside(target) as aside:
            figure.savefig(aside, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return written


def log_scale(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Make an axis logarithmic, with ticks as plain numbers: the given ones, or a few round ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis._set_axes_scale("log")
    axis.set_major_locator(MaxNLocator(6) if ticks is None else FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def draw_spreads(axes: Any, points: Mapping[float, Spread], name: str, color: Any, style: str = "-") -> None:
    """Plot a series of figures with their interquartile ranges; no line is drawn through a disturbed point.

    Parameters:
        points: the figures by their place on the x-axis; disturbed ones become hollow markers.
        style: of the lines between undisturbed neighbours.
    """
    for disturbed, group in itertools.groupby(sorted(points), key=lambda place: points[place].disturbed):
        run = list(group)
        medians = [points[place].median for place in run]
        axes.errorbar(run, medians, _errors([points[place] for place in run]), **_bars(color))
        line_style = {"linestyle": "none" if disturbed else style}
        (line,) = axes.plot(run, medians, **line_style, **_marker(disturbed, color))
    line.set_label(name)  # of the last run, at whose end it stands


def draw_figure(axes: Any, x: Spread, y: Figure, name: str, color: Any) -> None:
    """Plot one point with the interquartile range of x and the standard deviation of y; hollow if x is disturbed."""
    axes.errorbar([x.median], [y.mean], xerr=_errors([x]), yerr=[y.deviation or 0], **_bars(color))
    axes.plot([x.median], [y.mean], linestyle="none", label=name, **_marker(x.disturbed, color))


def _errors(spreads: Sequence[Spread]) -> tuple[list[float], list[float]]:
    below = [spread.median - spread.low for spread in spreads]
    return below, [spread.high - spread.median for spread in spreads]


def _bars(color: Any) -> dict[str, Any]:
    return {"fmt": "none", "ecolor": color, "elinewidth": 1, "capsize": 2}


def _marker(disturbed: bool, color: Any) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4, "color": color, "markerfacecolor": "white" if disturbed else color}


def _name_lines(figure: Any, axes: Any) -> None:
    """Write the label of each line to the right of its last point, and keep the labels apart."""
    figure.draw_without_rendering()  # before it, points have no place in the figure
    lines = [line for line in axes.lines if len(line.get_xdata()) and not line.get_label().startswith("_")]
    ends = {line: axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1])) for line in lines}
    scale = 72 / figure.dpi  # from pixels to points
    placed: list[tuple[float, float]] = []
    for line in sorted(lines, key=lambda line: ends[line][1]):
        x, y = ends[line] * scale
        place = y
        for other_x, other_y in placed:
            if abs(other_x - x) < _LABEL_WIDTH and place < other_y + _LABEL_HEIGHT:
                place = other_y + _LABEL_HEIGHT
        placed.append((x, place))
        axes.annotate(
            plain(str(line.get_label())),
            (line.get_xdata()[-1], line.get_ydata()[-1]),
            (8, place - y),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.5,
                "shrinkA": 0,
                "relpos": (0, 0.5),
            },
        )
