"""Declare the options of `hf-masking finetune`, which `scripts/finetune.py` runs on several processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...options import argument, option
from ...training.settings import TrainingSettings
from .groups import DataOptions, OneMaskOptions, SourceOptions


@dataclass(frozen=True)
class HeldOutOptions:
    """Select the text to evaluate on."""

    eval_data: str | None = option(None, "a text to evaluate on; by default the last tenth of --data")
    eval_split: str = option("validation", "the split of --eval-data, if it is a hub data set")
    eval_tokens: int = option(16_384, "number of tokens to evaluate on")


@dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """Select the text to train on."""

    split: str = option("train", "the split of --data, if it is a hub data set")


@dataclass(frozen=True)
class StreamOptions:
    """Say whether the text is read while the model trains."""

    stream: bool = option(False, "read --data while training; needs --eval-data", "--stream")
    shuffle_buffer: int = option(
        256, "with --stream: number of contexts from which the next one is drawn; 1 keeps the order"
    )


@dataclass(frozen=True)
class WritingOptions:
    """Say what is written besides the run's own folder."""

    tracker: list[str] = option([], "one of accelerate's trackers, e.g. tensorboard or wandb; repeatable")
    max_shard_size: str | None = option(None, "save the best model in files of at most this size, e.g. 2GB")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Fine-tune a model under a mask to predict the next token; an interrupted run resumes to the same losses."""

    examples: ClassVar = (
        "hf-masking finetune gpt2 --mask 'window:256|sinks:4' --data book.txt --output runs/window",
        "accelerate launch scripts/finetune.py gpt2 --mask window:256 --data book.txt --output runs/window",
    )

    model: str = argument(..., "a hub id or a folder")
    output: Path = option(..., "folder for the log, the checkpoints and the best model")
    source: SourceOptions
    masks: OneMaskOptions
    data: TrainingDataOptions
    streaming: StreamOptions
    held_out: HeldOutOptions
    writing: WritingOptions
    settings: TrainingSettings
    resume: bool = option(False, "continue the run in --output; --steps may be greater than before", "--resume")
