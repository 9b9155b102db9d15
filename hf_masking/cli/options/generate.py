"""Declare the options of `hf-masking generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...options import argument, option
from .groups import LoadingOptions, OneMaskOptions


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Generate text under a mask; then print the speed, and how much of a full cache was retained."""

    examples: ClassVar = (
        "hf-masking generate gpt2 --mask 'window:256|sinks:4' --prompt 'Once upon a time' --max-new-tokens 1000",
        "hf-masking generate ./my-model --prompt 'def main(' --temperature 0.8 --top-p 0.95",
        "hf-masking generate ./my-chat-model --mask 'window:1024|sinks:4' --prompt-file question.txt --chat",
    )

    model: str = argument(..., "a hub id or a folder")
    loading: LoadingOptions
    masks: OneMaskOptions
    prompt: str = option("", "the text to continue")
    prompt_file: Path | None = option(None, "a file with the text to continue; - for standard input")
    chat: bool = option(False, "put the prompt into the model's chat template, as a message of the user", "--chat")
    max_new_tokens: int = option(128, "the greatest number of tokens to generate")
    temperature: float = option(0.0, "0 takes the likeliest token, 1 samples as the model predicts")
    top_p: float = option(1.0, "sample among the likeliest tokens of this total probability")
    seed: int = option(0, "seed of the sampling")
    json: bool = option(False, "print the text and the figures as JSON, at the end", "--json")
