"""`hf-masking show SPEC`: what a mask looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class RealisedOptions:
    """On what a mask is looked at that depends on the content."""

    model: str | None = field(default=None, metadata={"help": "show what the mask comes to in this model"})
    text: str | None = field(default=None, metadata={"help": "the text that it reads; by default Python source"})
    layer: int = field(default=0, metadata={"help": "the layer that is shown"})
    head: int = field(default=0, metadata={"help": "the query head that is shown"})


def show(
    spec: Annotated[str, typer.Argument(help="a mask, e.g. 'window:8|sinks:2'")],
    length: Annotated[int, typer.Option(help="number of positions")] = 32,
    png: Annotated[Path | None, typer.Option(help="draw the mask into this file")] = None,
    *,
    realisation: RealisedOptions,
) -> None:
    """Draw a mask, and say how much it allows, what a cache must keep and how it is computed."""
    from ..show import show as run

    run(spec, length, png, realisation)
