"""Say how long each mask is tried. The command line turns every field into an option."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option
from ..training.settings import TrainingSettings


@dataclass(frozen=True)
class TrialSettings:
    """How each mask is tried. The defaults are short: they show a trend and are not for publication."""

    context: int = option(4096, "tokens in a context")
    stride: int | None = option(None, "tokens from one evaluation window to the next; by default the context")
    steps: int = option(16, "optimizer steps of fine-tuning for each mask")
    batch_size: int = option(1, "contexts in an optimizer step")
    learning_rate: float = option(3e-4, "highest learning rate")
    train_tokens: int = option(700_000, "number of tokens to fine-tune on")
    eval_tokens: int = option(24_577, "number of tokens to evaluate on")
    eval_every: int | None = option(
        None, "steps between points of the recovery curve; by default before and after the fine-tuning"
    )
    seed: int = option(0, "the first seed: order of the contexts, and dropout")
    probe: str | None = option(
        None, "also the right answers to a probe, before and after the fine-tuning: recall, copy or passkey"
    )

    def training(self) -> TrainingSettings:
        """Return the settings of the fine-tuning."""
        return TrainingSettings(
            context=self.context,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=min(10, self.steps // 4),
            seed=self.seed,
            eval_every=self.steps if self.eval_every is None else self.eval_every,
        )
