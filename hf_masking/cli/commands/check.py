"""`hf-masking check MODEL`: does this model keep its mask, and does every mode of `generate`?"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..options import MaskOptions, Model, OutputOption


@dataclass(frozen=True)
class CheckOptions:
    """What is tried."""

    length: list[int] = field(
        default_factory=list,
        metadata={"help": "tokens in the prompts; repeatable; by default around every border of the mask"},
    )
    new_tokens: int = field(default=10, metadata={"help": "tokens that each mode writes"})


def check(model: Model, masks: MaskOptions, options: CheckOptions, output: OutputOption) -> None:
    """Compare a patched model with recomputation: padding, packing, backends, caches and every mode of generate."""
    from ..check import check as run

    run(model, masks, options, output)
