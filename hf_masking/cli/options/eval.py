"""Declare the options of `hf-masking eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...options import argument, option
from .groups import DataOptions, LoadingOptions, MaskOrFileOptions, OutputOption


@dataclass(frozen=True)
class WindowOptions:
    """Say how the text is cut into windows."""

    context: int = option(512, "tokens that a window reads")
    stride: int | None = option(None, "tokens from one window to the next; by default the context")
    batch_size: int = option(4, "windows in a forward pass")
    max_tokens: int | None = option(
        None, "evaluate only the first tokens; by default 32768 of 'stdlib', else all of them"
    )
    bos: bool | None = option(
        None, "put the BOS token before every window; by default as the tokenizer does", "--bos/--no-bos"
    )


@dataclass(frozen=True)
class ProbeOptions:
    """Ask synthetic questions in place of reading a text."""

    probe: list[str] = option(
        [], "instead of perplexity: recall, copy or passkey, answered at each distance in the context; repeatable"
    )
    questions: int = option(64, "questions of a probe at each distance")
    seed: int = option(0, "seed of the questions of a probe")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate the perplexity of a text under each mask, and the loss by position in the context.

    With --probe no text is read: synthetic questions show how far back the model finds an answer.
    """

    examples: ClassVar = (
        "hf-masking eval gpt2 --mask causal --mask 'window:256|sinks:4' --data book.txt",
        "hf-masking eval ./my-model --mask window:256 --layer 0=causal --context 1024 --stride 512",
        "hf-masking eval gpt2 --mask causal --mask 'window:256|sinks:4' --probe recall --probe passkey --context 1024",
    )

    model: str = argument(..., "a hub id or a folder")
    loading: LoadingOptions
    masks: MaskOrFileOptions
    data: DataOptions
    windows: WindowOptions
    probes: ProbeOptions
    output: OutputOption
