"""Draw figures with matplotlib, where it is installed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import written_aside

logger = logging.getLogger("hf_masking")


def plain(text: str) -> str:
    """Return a text for matplotlib in which dollar signs stand for themselves."""
    return text.replace("$", r"\$")


def warn_of_no_pictures() -> None:
    """Log a warning, before anything is measured, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no pictures will be drawn: they need matplotlib; pip install 'hf-masking[plot]'")


def write_picture(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> list[Path]:
    """Write a figure whose axes ``draw`` fills; return the paths that were written, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    # Lines and points may overlap: a legend beside the axes stays readable.
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
    return [path]
