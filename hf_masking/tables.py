"""Tables: shown in a terminal and written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from .files import written_aside

_WORDS = {"mask", "runs"}  # columns that are not numbers


@dataclass(frozen=True)
class Grid:
    """Cells in rows; a heading may have several lines."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self, title: str | None = None) -> Table:
        # Without lines between the columns a table fits into 80 characters.
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
        """Return a row with its masks as code."""
        return [
            f"`{cell}`" if heading == "mask" and cell else cell
            for heading, cell in zip(self.headings, row, strict=True)
        ]


def _line(cells: Sequence[str]) -> str:
    # A bar ends a cell, even inside code.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_markdown(path: Path, title: str, *parts: str) -> None:
    """Write a title, then tables or paragraphs."""
    with written_aside(path) as aside:
        aside.write_text("\n\n".join([f"**{title}**", *parts]) + "\n", encoding="utf-8")
