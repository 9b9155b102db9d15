"""Report measurements of attention: a table, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import pictures
from ..evaluation.benchmark import DENSE_MASK, IS_CAUSAL, RIVALS, Row
from ..evaluation.timing import DISTURBED, Spread
from ..tables import Grid

Rows = Sequence[Row]


def _rival(rows: Rows, row: Row, backend: str) -> Row | None:
    return next((other for other in rows if other.length == row.length and other.backend == backend), None)


def _times(rows: Rows, row: Row, backend: str) -> str:
    """Return the speed-up over a rival, forward and forward+backward."""
    rival = _rival(rows, row, backend)
    if rival is None or row is rival:
        return ""
    ratios = (ours.speed_up(theirs) for ours, theirs in zip(row.timings, rival.timings, strict=True))
    return " / ".join("-" if ratio is None else ratio.text("{:.1f}", "x") for ratio in ratios)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:,.1f}" if value < 1 else f"{value * 1e3:,.0f}"


def _spread(seconds: Spread | None) -> str:
    return "" if seconds is None else _seconds(seconds.median) + "*" * seconds.disturbed


def _shares(row: Row) -> str:
    shares = (row.forward_share, row.both_share)
    return " / ".join("-" if share is None else f"{share:.0%}" for share in shares)


def _touched(row: Row) -> str:
    return "" if row.touched_pairs is None else f"{row.touched_pairs / max(1, row.allowed_pairs):.2f}"


COLUMNS: dict[str, Callable[[Rows, Row], str]] = {
    "forward\nms": lambda rows, row: _spread(row.forward),
    "fwd+bwd\nms": lambda rows, row: _spread(row.both),
    f"faster than\n{IS_CAUSAL}": lambda rows, row: _times(rows, row, IS_CAUSAL),
    "faster than\ndense mask": lambda rows, row: _times(rows, row, DENSE_MASK),
    "touched /\nallowed": lambda rows, row: _touched(row),
    "of the matrix\nrate": lambda rows, row: _shares(row),
    "extra\nMiB": lambda rows, row: "" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:,.0f}",
    "plan\nms": lambda rows, row: _seconds(row.plan_seconds),
}


def grid(rows: Rows) -> Grid:
    cells = [[f"{row.length:,}", row.mask, row.runs, *_cells(rows, row)] for row in rows]
    return Grid(("length", "mask", "runs", *COLUMNS), cells)


def notes(rows: Rows) -> list[str]:
    """Return what explains the marks of the table, and one line per row that failed or whose memory is not known."""
    lines = [DISTURBED] if "*" in "".join(cell for row in grid(rows).rows for cell in row[3:]) else []
    for row in rows:
        name = f"{row.mask} by {row.runs}, {row.length:,} tokens"
        if row.error:
            lines.append(f"{name}, failed: {row.error}")
        if row.memory_error:
            lines.append(f"{name}: no memory was measured: {row.memory_error}")
    return lines


def _cells(rows: Rows, row: Row) -> list[str]:
    if row.error:
        return ["failed", *[""] * (len(COLUMNS) - 1)]
    return [cell(rows, row) for cell in COLUMNS.values()]


def write_picture(path: Path, rows: Rows, title: str) -> list[Path]:
    """Plot the time of forward and backward against length, log-log; return the paths that were written."""
    series: dict[str, dict[float, Spread]] = {}
    for row in rows:
        if row.both is not None and (row.backend in RIVALS or row.backend == "auto"):
            series.setdefault(row.backend if row.backend in RIVALS else row.mask, {})[row.length] = row.both

    def draw(axes: Any) -> None:
        for name, points in series.items():
            style, color = ("--", "0.5") if name in RIVALS else ("-", pictures.colour_of(name))
            pictures.draw_spreads(axes, points, name, color, style)
        note = " (interquartile range; hollow: disturbed)"
        axes.set(xlabel="tokens", ylabel="seconds", title=f"Time of forward and backward{note}\n{title}")
        pictures.log_scale(axes.xaxis, sorted({length for points in series.values() for length in points}))
        axes.tick_params("x", labelrotation=45)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)

    return pictures.write_picture(path, (8, 4.5), draw, direct=True)
