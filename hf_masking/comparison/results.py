"""Summarize the trials of each mask: means, and standard deviations over seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .trials import Trial

_OCTAVES = 5


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and its standard deviation, which is None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class MaskResult:
    """The finished trials of a mask, and the error of the first one that failed."""

    mask: str
    trials: tuple[Trial, ...]
    error: str | None = None

    @property
    def finetuned(self) -> Figure:
        """Return the perplexity after fine-tuning."""
        return Figure.of([trial.finetuned for trial in self.trials])

    @property
    def recovery(self) -> dict[int, Figure]:
        """Return the perplexity by steps of fine-tuning."""
        return {step: Figure.of([trial.recovery[step] for trial in self.trials]) for step in self.trials[0].recovery}

    def excess(self, other: MaskResult) -> Figure | None:
        """Return the relative excess in perplexity over another mask, paired by seed; None without a common seed."""
        theirs = {trial.seed: trial.finetuned for trial in other.trials}
        shares = [trial.finetuned / theirs[trial.seed] - 1 for trial in self.trials if trial.seed in theirs]
        return Figure.of(shares) if shares else None

    def loss(self, positions: range) -> float | None:
        """Return the mean loss in nats at these positions of a context; None where nothing was scored."""
        means = (_mean([trial.by_position[place] for place in positions]) for trial in self.trials)
        return _mean(list(means))

    def over_seeds(self, field: str) -> Figure | None:
        """Return the mean and the deviation of a field over the trials; None where nothing was measured."""
        values = [value for trial in self.trials if (value := getattr(trial, field)) is not None]
        return Figure.of(values) if values else None

    def median(self, field: str) -> float | None:
        """Return the median of a field over the trials; None where nothing was measured."""
        values = [value for trial in self.trials if (value := getattr(trial, field)) is not None]
        return statistics.median(values) if values else None


def results_by_mask(masks: Sequence[str], trials: Sequence[Trial]) -> list[MaskResult]:
    """Return one result per mask, in the order of the masks."""
    results = []
    for mask in masks:
        own = [trial for trial in trials if trial.mask == mask]
        error = next((trial.error for trial in own if trial.error), None)
        results.append(MaskResult(mask, tuple(trial for trial in own if trial.error is None), error))
    return results


def segments(context: int, per_octave: int = 1) -> list[range]:
    """Return log-spaced parts of a context: five octaves, each twice as long as the one before, and what is below.

    Parameters:
        per_octave: in how many parts each octave is cut.
    """
    edges = {round(context * 2 ** (-step / per_octave)) for step in range(_OCTAVES * per_octave + 1)}
    return [range(start, stop) for start, stop in itertools.pairwise(sorted({0, *edges}))]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
