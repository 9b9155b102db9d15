"""What reports are made of: cells, shown in a terminal and written as Markdown, and figures as PNGs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ..files import written_aside
from .console import say_written
from .terminal import warn

_WORDS = {"mask", "runs"}  # columns that are not numbers


@dataclass(frozen=True)
class Grid:
    """Cells in rows; a heading may have several lines."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self, title: str | None = None) -> Table:
        # Without lines between the columns it fits into 80 characters.
        result = Table(
            title=title, box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False
        )
        for heading in self.headings:
            if heading in _WORDS:
                result.add_column(heading, overflow="fold")
            else:
                result.add_column(heading, justify="right")
        for row in self.rows:
            result.add_row(*row)
        return result

    def markdown(self) -> str:
        marks = "|".join("---" if heading in _WORDS else "---:" for heading in self.headings)
        lines = [_line([heading.replace("\n", " ") for heading in self.headings]), f"|{marks}|"]
        return "\n".join(lines + [_line(self._marked(row)) for row in self.rows])

    def _marked(self, row: Sequence[str]) -> list[str]:
        """With masks as code."""
        return [
            f"`{cell}`" if heading == "mask" and cell else cell
            for heading, cell in zip(self.headings, row, strict=True)
        ]


def _line(cells: Sequence[str]) -> str:
    # In a table a bar ends the cell, inside code too.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_markdown(path: Path, title: str, *parts: str) -> None:
    """A title, then tables or paragraphs."""
    with written_aside(path) as aside:
        aside.write_text("\n\n".join([f"**{title}**", *parts]) + "\n", encoding="utf-8")
    say_written(path)


def plain(text: str) -> str:
    """A text as matplotlib writes it, in which dollars stand for themselves."""
    return text.replace("$", r"\$")


def warn_of_no_pictures() -> None:
    """Say before anything is measured that there will be no pictures, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        warn("no pictures will be drawn: they need matplotlib; pip install 'hf-masking[plot]'")


def write_picture(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Hands axes to ``draw`` and writes the figure, with the names beside it; does nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    # Lines and points may lie on top of each other: names beside the axes stay readable.
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
    say_written(path)
