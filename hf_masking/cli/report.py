"""A comparison as a table, as Markdown and as a picture: one list of columns for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from ..files import written_aside
from ..training.comparison import Row
from .console import errors

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
    lines = [f"**{title}**", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * len(COLUMNS)]
    for row in rows:
        # In a table a bar ends the cell, inside code too.
        cells = [cell.replace("|", "\\|") for cell in (f"`{row.mask}`", *_cells(row))]
        lines.append(f"| {' | '.join(cells)} |")
    with written_aside(path) as aside:
        aside.write_text("\n".join(lines) + "\n")
    errors.print(f"wrote {path}")


def write_picture(path: Path, rows: Sequence[Row], title: str) -> None:
    """Perplexity after fine-tuning against training speed; says so if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        errors.print(f"no picture {path}: it needs matplotlib; pip install 'hf-masking\\[plot]'")
        return
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.train_tokens_per_second is not None and row.perplexity_finetuned is not None:
            axes.plot(row.train_tokens_per_second, row.perplexity_finetuned, "o", markersize=9, label=row.mask)
    axes.set(title=title, xlabel="tokens/s, training", ylabel="perplexity, fine-tuned (lower is better)")
    # Masks that do alike lie on top of each other: names beside the axes stay readable.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
    errors.print(f"wrote {path}")


def _cells(row: Row) -> list[str]:
    if row.error:
        return [f"failed: {row.error}", *[""] * (len(COLUMNS) - 1)]
    return [cell(row) for cell in COLUMNS.values()]
