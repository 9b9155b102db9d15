"""`hf-masking finetune MODEL`: fine-tune under a mask. `scripts/finetune.py` is the same, for `accelerate launch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ...training.settings import TrainingSettings
from ..options import DataOptions, MaskOptions, Model


@dataclass(frozen=True)
class HeldOutOptions:
    """What is evaluated on."""

    eval_data: str | None = field(
        default=None, metadata={"help": "a text to evaluate on; by default the last tenth of --data"}
    )
    eval_split: str = field(
        default="validation", metadata={"help": "the split of --eval-data, if it is a hub data set"}
    )
    eval_tokens: int = field(default=16_384, metadata={"help": "evaluate on that many tokens of it"})


@dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """Which text to train on."""

    split: str = field(default="train", metadata={"help": "the split of --data, if it is a hub data set"})


@dataclass(frozen=True)
class StreamOptions:
    """Whether the text is read while it is used."""

    stream: bool = field(
        default=False, metadata={"flags": ("--stream",), "help": "read --data while training; needs --eval-data"}
    )
    shuffle_buffer: int = field(
        default=256, metadata={"help": "with --stream: contexts among which the next one is drawn; 1 keeps the order"}
    )


@dataclass(frozen=True)
class WritingOptions:
    """What is written where, besides the run's own folder."""

    tracker: list[str] = field(
        default_factory=list, metadata={"help": "one of accelerate's trackers, e.g. tensorboard or wandb; repeatable"}
    )
    max_shard_size: str | None = field(
        default=None, metadata={"help": "save the best model in files of at most this size, e.g. 2GB"}
    )


def finetune(
    model: Model,
    output: Annotated[Path, typer.Option(help="folder for the log, the checkpoints and the best model")],
    masks: MaskOptions,
    data: TrainingDataOptions,
    streaming: StreamOptions,
    held_out: HeldOutOptions,
    writing: WritingOptions,
    settings: TrainingSettings,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --output")] = False,
) -> None:
    """Fine-tune a model under a mask to predict the next token; resumes to the same losses after a kill."""
    from ..finetune import finetune as run

    run(model, output, masks, data, streaming, held_out, writing, settings, resume)
