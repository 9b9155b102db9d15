"""`hf-masking show SPEC`: what a mask looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_file, written_aside
from ..masks import Causal, Mask
from ..masks.picture import count_pairs, draw_png, draw_text, keys_kept
from .console import console, errors

WIDEST = 64  # positions that are drawn as text


def show(
    spec: Annotated[str, typer.Argument(help="a mask, e.g. 'window:8|sinks:2'")],
    length: Annotated[int, typer.Option(help="number of positions")] = 32,
    png: Annotated[Path | None, typer.Option(help="draw the mask into this file")] = None,
) -> None:
    """Draw a mask, and say how much it allows and how much a cache must keep."""
    if length < 1:
        raise ValueError(f"--length must be at least 1, got {length}")
    mask = Mask.parse(spec)
    if png is not None:
        _draw(mask, length, png)
    if length <= WIDEST:
        console.print(draw_text(mask, length), markup=False, highlight=False, soft_wrap=True)
    else:
        errors.print(f"(drawn as text up to {WIDEST} positions; --png FILE draws {length})")
    pairs, causal = count_pairs(mask, length), count_pairs(Causal(), length)
    lookahead = f"{mask.lookahead} tokens: no generation" if mask.lookahead else "0 (causal)"
    console.print(
        f"mask       {mask}\n"
        f"density    {pairs / causal:.2%} of causal ({pairs:,} of {causal:,} pairs)\n"
        f"lookahead  {lookahead}\n"
        f"cache      {keys_kept(mask, length):,} of {length:,} keys can still be read at length {length:,}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _draw(mask: Mask, length: int, path: Path) -> None:
    if length > 4096:
        raise ValueError(f"--png draws at most 4096 positions, got {length}")
    check_file(path)
    with written_aside(path) as aside:
        draw_png(mask, length, aside)
    errors.print(f"wrote {path}")
