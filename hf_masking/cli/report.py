"""A comparison as a table, as Markdown and as a picture: one list of columns for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ..training.comparison import Row
from . import tables

COLUMNS: dict[str, Callable[[Row], str]] = {
    "density": lambda row: f"{row.density:.1%}",
    "perplexity\npatched": lambda row: f"{row.perplexity_patched:.2f}",
    "perplexity\nfine-tuned": lambda row: f"{row.perplexity_finetuned:.2f}",
    "tokens/s\ntraining": lambda row: f"{row.train_tokens_per_second:,.0f}",
    "tokens/s\neval": lambda row: f"{row.eval_tokens_per_second:,.0f}",
    "peak\nMiB": lambda row: f"{(row.peak_memory_bytes or 0) / 2**20:,.0f}",
}


def table(rows: Sequence[Row], title: str) -> Table:
    # Without lines between the columns it fits into 80 characters.
    result = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False
    )
    result.add_column("mask", overflow="fold")
    for heading in COLUMNS:
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(escape(row.mask), *map(escape, _cells(row)))
    return result


def progress(row: Row, number: int, total: int) -> str:
    if row.error:
        return f"{number}/{total} {row.mask}: failed: {row.error}"
    return (
        f"{number}/{total} {row.mask}: perplexity {row.perplexity_patched:.2f}, after fine-tuning "
        f"{row.perplexity_finetuned:.2f} ({row.seconds:.0f} s)"
    )


def write_markdown(path: Path, rows: Sequence[Row], title: str) -> None:
    headings = ["mask", *(heading.replace("\n", ", ") for heading in COLUMNS)]
    cells = [[f"`{row.mask}`", *_cells(row)] for row in rows]
    tables.write_markdown(path, title, headings, "---|" + "---:|" * len(COLUMNS), cells)


def write_picture(path: Path, rows: Sequence[Row], title: str) -> None:
    """Perplexity after fine-tuning against training speed."""

    def draw(axes: Any) -> None:
        for row in rows:
            if row.train_tokens_per_second is not None and row.perplexity_finetuned is not None:
                axes.plot(row.train_tokens_per_second, row.perplexity_finetuned, "o", markersize=9, label=row.mask)
        axes.set(title=title, xlabel="tokens/s, training", ylabel="perplexity, fine-tuned (lower is better)")
        axes.margins(0.2)
        axes.grid(alpha=0.3)

    tables.write_picture(path, (8, 4), draw)


def _cells(row: Row) -> list[str]:
    if row.error:
        return [f"failed: {row.error}", *[""] * (len(COLUMNS) - 1)]
    return [cell(row) for cell in COLUMNS.values()]
