"""Declare the options of `hf-masking info`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...options import argument, option
from .groups import SourceOptions


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Print which masks a checkpoint carries, by layer, without loading its weights."""

    examples: ClassVar = ("hf-masking info runs/window/best", "hf-masking info gpt2 --json")

    checkpoint: str = argument(..., "a hub id or a folder, of a model or an adapter")
    source: SourceOptions
    json: bool = option(False, "print the figures as JSON", "--json")
