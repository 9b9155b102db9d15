"""`hf-masking generate MODEL`: text under a mask, as it comes, and what the cache kept for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..options import MaskOptions, Model


@dataclass(frozen=True)
class GenerateOptions:
    """How it is written."""

    prompt: str = field(default="", metadata={"help": "the text to go on from"})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens to write at most"})
    temperature: float = field(default=0.0, metadata={"help": "0 takes the likeliest token, 1 samples as predicted"})
    top_p: float = field(default=1.0, metadata={"help": "sample among the likeliest tokens of this total probability"})
    seed: int = field(default=0, metadata={"help": "seed of the sampling"})


def generate(model: Model, masks: MaskOptions, options: GenerateOptions) -> None:
    """Write text under a mask; then say how fast, and how much the cache kept of what a full one would."""
    from ..generate import generate as run

    run(model, masks, options)
