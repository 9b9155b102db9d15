"""What both reports are made of: rows of cells as Markdown, and a figure as a PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import written_aside
from .console import errors


def write_markdown(
    path: Path, title: str, headings: Sequence[str], alignment: str, rows: Iterable[Sequence[str]]
) -> None:
    """``alignment`` is the line below the headings, without its first bar."""
    lines = [f"**{title}**", "", f"| {' | '.join(headings)} |", f"|{alignment}"]
    # In a table a bar ends the cell, inside code too.
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    with written_aside(path) as aside:
        aside.write_text("\n".join(lines) + "\n")
    errors.print(f"wrote {path}")


def write_picture(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Hands axes to ``draw`` and writes the figure, with the names beside it; says so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        errors.print(f"no picture {path}: it needs matplotlib; pip install 'hf-masking\\[plot]'")
        return
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    # Lines and points may lie on top of each other: names beside the axes stay readable.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
    errors.print(f"wrote {path}")
