"""Declare the options of `hf-masking check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...options import argument, option
from .groups import LoadingOptions, MaskOrFileOptions, OutputOption


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Compare a patched model with recomputation: padding, packing, backends, caches and every mode of generate."""

    examples: ClassVar = (
        "hf-masking check gpt2 --mask 'window:256|sinks:4'",
        "hf-masking check ./my-model --mask 'window:64|sinks:4' --length 63 --length 320 --output check.json",
    )

    model: str = argument(..., "a hub id or a folder")
    loading: LoadingOptions
    masks: MaskOrFileOptions
    length: list[int] = option([], "tokens in the prompts; repeatable; by default around every edge of the mask")
    new_tokens: int = option(10, "tokens that each mode generates")
    output: OutputOption
