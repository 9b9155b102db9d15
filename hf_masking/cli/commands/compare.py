"""`hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ...training.settings import TrainingSettings
from ..options import DataOptions, MaskOptions


@dataclass(frozen=True)
class CompareOptions:
    """How each mask is tried. Short on purpose: a fine-tuning to see a trend, not to publish."""

    context: int = field(default=512, metadata={"help": "tokens in a context"})
    stride: int | None = field(
        default=None, metadata={"help": "tokens from an evaluation window to the next; by default the context"}
    )
    steps: int = field(default=30, metadata={"help": "optimizer steps of fine-tuning for each mask"})
    batch_size: int = field(default=4, metadata={"help": "contexts in an optimizer step"})
    learning_rate: float = field(default=3e-4, metadata={"help": "highest learning rate"})
    train_tokens: int = field(default=700_000, metadata={"help": "fine-tune on that many tokens"})
    eval_tokens: int = field(default=24_577, metadata={"help": "evaluate on that many tokens"})
    eval_every: int | None = field(
        default=None, metadata={"help": "steps between points of the recovery curve; by default all of them"}
    )
    seed: int = field(default=0, metadata={"help": "the first seed: order of the contexts, and dropout"})

    def settings(self) -> TrainingSettings:
        return TrainingSettings(
            context=self.context,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=min(10, self.steps // 4),
            seed=self.seed,
            eval_every=self.steps if self.eval_every is None else self.eval_every,
        )


def compare(
    masks: MaskOptions,
    data: DataOptions,
    options: CompareOptions,
    model: Annotated[
        str | None, typer.Argument(help="a hub id or a folder; without one a small model is trained once and kept")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="folder for the report: JSON, Markdown and pictures, and the trials it is made of")
    ] = Path("hf-masking-compare"),
    seeds: Annotated[int, typer.Option(help="how many seeds each mask is tried under, with the same batches")] = 1,
    longest: Annotated[
        int, typer.Option(help="look up to that many tokens from where on a mask pays; 0 for not at all")
    ] = 4096,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the comparison in --output; masks and seeds may be added")
    ] = False,
) -> None:
    """Perplexity before and after a short fine-tuning, speed and memory of each mask, in one report."""
    from ..compare import compare as run

    run(masks, data, options, model, output, seeds, longest, resume)
