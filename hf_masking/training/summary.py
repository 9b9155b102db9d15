"""What the trials of a mask come to: means, and how much they differ from seed to seed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .comparison import Trial

_BEGINNING = 64  # tokens, of which little can be said from context


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, and their standard deviation; None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Summary:
    """The trials of a mask that came to an end, and what stopped the first of the others."""

    mask: str
    trials: tuple[Trial, ...]
    error: str | None = None

    @property
    def finetuned(self) -> Figure:
        """Perplexity after fine-tuning."""
        return Figure.of([trial.finetuned for trial in self.trials])

    @property
    def recovery(self) -> dict[int, Figure]:
        """Perplexity by steps of fine-tuning."""
        return {step: Figure.of([trial.recovery[step] for trial in self.trials]) for step in self.trials[0].recovery}

    def excess(self, other: Summary) -> Figure | None:
        """By which share its perplexity is above that of another mask, paired by seed; None if they share none."""
        theirs = {trial.seed: trial.finetuned for trial in other.trials}
        shares = [trial.finetuned / theirs[trial.seed] - 1 for trial in self.trials if trial.seed in theirs]
        return Figure.of(shares) if shares else None

    def loss(self, positions: range) -> float | None:
        """Mean loss in nats at these positions of a context; None where nothing was scored."""
        means = (_mean([trial.by_position[place] for place in positions]) for trial in self.trials)
        return _mean(list(means))

    def median(self, field: str) -> float | None:
        """Of a measured number."""
        values = [value for trial in self.trials if (value := getattr(trial, field)) is not None]
        return statistics.median(values) if values else None


def summarize(masks: Sequence[str], trials: Sequence[Trial]) -> list[Summary]:
    """In the order of the masks."""
    summaries = []
    for mask in masks:
        own = [trial for trial in trials if trial.mask == mask]
        error = next((trial.error for trial in own if trial.error), None)
        summaries.append(Summary(mask, tuple(trial for trial in own if trial.error is None), error))
    return summaries


def segments(context: int) -> list[range]:
    """The first tokens of a context, then the rest of its first quarter and the other three."""
    first = min(_BEGINNING, math.ceil(context / 8))
    edges = sorted({0, first, *(context * quarter // 4 for quarter in range(1, 5))})
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
