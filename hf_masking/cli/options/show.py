"""Declare the options of `hf-masking show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...options import argument, option
from .groups import LoadingOptions


@dataclass(frozen=True)
class ShowModelOptions:
    """Select the model and the text in which an adaptive mask is shown."""

    model: str | None = option(None, "show the realized mask in this model")
    text: str | None = option(None, "the text that the model reads; by default Python source")
    show_layer: int = option(0, "the layer to show")
    head: int = option(0, "the query head to show")


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Draw a mask; print its density, what a cache must retain and how it is computed."""

    examples: ClassVar = (
        "hf-masking show 'window:8|sinks:2' --length 24",
        "hf-masking show 'strided:8|window:8' --png mask.png",
    )

    spec: str = argument(..., "a mask, e.g. 'window:8|sinks:2'")
    length: int = option(32, "number of positions")
    png: Path | None = option(None, "draw the mask into this file")
    json: bool = option(False, "print the figures as JSON, without the drawing", "--json")
    inside: ShowModelOptions
    loading: LoadingOptions
