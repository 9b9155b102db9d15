"""Tables: as text that fits a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import written_aside

_WORDS = {"mask", "runs"}  # columns that are not numbers
_GAP = "  "  # between columns, and before the figures below a label


@dataclass(frozen=True)
class Grid:
    """Cells in rows; a heading may have several lines. The columns up to the last one of words are labels."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self, width: int) -> str:
        """Return the table as text of at most ``width`` characters per line, except for longer labels.

        Each row takes one line if it fits, else one for its labels and one for its figures. Columns that still do not
        fit form another table below. No cell is cut or wrapped.
        """
        columns = [_Column(heading, [row[i] for row in self.rows]) for i, heading in enumerate(self.headings)]
        n_labels = 1 + max((i for i, heading in enumerate(self.headings) if heading in _WORDS), default=-1)
        labels, figures = columns[:n_labels], columns[n_labels:]
        if _width(columns) <= width:
            return "\n".join(_lines(columns))
        names = [_GAP.join(filter(None, row[:n_labels])) for row in self.rows]
        head = [_GAP.join(self.headings[:n_labels])] if labels else []
        tables = []
        for group in _groups(figures, width - len(_GAP)):
            lines = [(_GAP + line).rstrip() for line in _lines(group)]
            n_head = len(lines) - len(self.rows)
            body = [line for pair in zip(names, lines[n_head:], strict=True) for line in pair]
            tables.append("\n".join([*head, *lines[:n_head], *body]))
        return "\n\n".join(tables) if figures else "\n".join(_lines(labels))

    def markdown(self) -> str:
        """Return the table as Markdown."""
        marks = "|".join("---" if heading in _WORDS else "---:" for heading in self.headings)
        lines = [_markdown_line([heading.replace("\n", " ") for heading in self.headings]), f"|{marks}|"]
        return "\n".join(lines + [_markdown_line(self._marked(row)) for row in self.rows])

    def _marked(self, row: Sequence[str]) -> list[str]:
        """Return a row with its masks as code."""
        return [
            f"`{cell}`" if heading == "mask" and cell else cell
            for heading, cell in zip(self.headings, row, strict=True)
        ]


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        return max(map(len, [*self.heading.split("\n"), *self.cells]))

    def aligned(self, cell: str) -> str:
        return cell.ljust(self.width) if self.heading in _WORDS else cell.rjust(self.width)


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _groups(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """Cut columns into groups that fit ``width``."""
    group: list[_Column] = []
    for column in columns:
        if group and _width([*group, column]) > width:
            yield group
            group = []
        group.append(column)
    if group:
        yield group


def _lines(columns: Sequence[_Column]) -> list[str]:
    """Return the lines of the headings, a rule, and one line per row."""
    heads = [column.heading.split("\n") for column in columns]
    height = max(map(len, heads))
    padded = [[""] * (height - len(head)) + head for head in heads]
    rows = [*zip(*padded, strict=True), ["-" * column.width for column in columns]]
    rows += zip(*(column.cells for column in columns), strict=True)
    return [_GAP.join(column.aligned(cell) for column, cell in zip(columns, row, strict=True)).rstrip() for row in rows]


def _markdown_line(cells: Sequence[str]) -> str:
    # A bar ends a cell, even inside code.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_markdown(path: Path, title: str, *parts: str) -> None:
    """Write a title, then tables or paragraphs."""
    with written_aside(path) as aside:
        aside.write_text("\n\n".join([f"**{title}**", *parts]) + "\n", encoding="utf-8")
