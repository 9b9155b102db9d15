"""`hf-masking eval MODEL`: perplexity under one or several masks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..options import DataOptions, MaskOptions, Model, OutputOption


@dataclass(frozen=True)
class WindowOptions:
    """How the text is cut."""

    context: int = field(default=512, metadata={"help": "tokens that a window reads"})
    stride: int | None = field(
        default=None, metadata={"help": "tokens from a window to the next; by default the context"}
    )
    batch_size: int = field(default=4, metadata={"help": "windows in a forward pass"})
    max_tokens: int | None = field(
        default=None, metadata={"help": "evaluate the first tokens only; by default 32768 of 'stdlib', else all"}
    )
    bos: bool | None = field(
        default=None,
        metadata={
            "help": "put the BOS token before every window; by default as the tokenizer does",
            "flags": ("--bos/--no-bos",),
        },
    )


def evaluate(model: Model, masks: MaskOptions, data: DataOptions, windows: WindowOptions, output: OutputOption) -> None:
    """Perplexity of a text under each mask, and the loss by position in the context."""
    from ..eval import evaluate as run

    run(model, masks, data, windows, output)
