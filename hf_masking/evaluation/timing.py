"""Time contenders in interleaved rounds, and notice the rounds in which the machine was busy with something else.

A fixed matrix product is timed before and after each round. A round beside a product that is slower than the best one
by more than ``TOLERANCE`` is disturbed: another round is run for it, as often as ``patience`` allows, and only
quiet rounds count, unless too few are left. A figure that still varies too much, or has too few quiet rounds, is
marked as disturbed.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

TOLERANCE = 0.25  # of the best calibration
WIDEST = 0.15  # the interquartile range of an undisturbed figure, as a share of its median
FEWEST_ROUNDS = 3  # quiet ones, below which a figure has no spread to speak of
DISTURBED = f"* disturbed: fewer than {FEWEST_ROUNDS} quiet rounds, or quartiles more than {WIDEST:.0%} apart"
MATRIX = 1024
_FEWEST_SECONDS = 0.02  # short calls are repeated until their total reaches this

Contender = Callable[[int], float]  # from the number of the turn to the seconds that it took


@dataclass(frozen=True)
class Spread:
    """A figure with its spread over rounds: median, quartiles, and whether the machine disturbed it."""

    median: float
    low: float
    high: float
    disturbed: bool = False

    @classmethod
    def of(cls, values: Sequence[float], quiet_rounds: int | None = None) -> Spread:
        """Return the median and the quartiles of some rounds, of which ``quiet_rounds`` (by default all) were quiet."""
        quiet_rounds = len(values) if quiet_rounds is None else quiet_rounds
        low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median, low, high, quiet_rounds < FEWEST_ROUNDS or high - low > WIDEST * abs(median))

    def text(self, form: str, unit: str = "", *, quartiles: bool = False) -> str:
        """Return the median and its unit, and the quartiles if wanted; an asterisk marks a disturbed figure."""
        between = f" ({form.format(self.low)}-{form.format(self.high)})" if quartiles else ""
        return form.format(self.median) + unit + between + "*" * self.disturbed


@dataclass(frozen=True)
class Timing:
    """The seconds of a contender, or the error that stopped it.

    seconds: one entry per round that counts: the quiet rounds, or all of them if too few were quiet.
    quiet_rounds: how many rounds were quiet; None if nobody looked.
    """

    seconds: tuple[float, ...] = ()
    quiet_rounds: int | None = None
    error: Exception | None = None

    @property
    def spread(self) -> Spread | None:
        return self.scaled(1)

    def scaled(self, factor: float) -> Spread | None:
        """Return the seconds in another unit."""
        return Spread.of([factor * taken for taken in self.seconds], self.quiet_rounds) if self.seconds else None

    def per_second(self, amount: float) -> Spread | None:
        """Return how much of something that a round does ``amount`` of was done in a second."""
        return Spread.of([amount / taken for taken in self.seconds], self.quiet_rounds) if self.seconds else None

    def speed_up(self, rival: Timing) -> Spread | None:
        """Return by which factor this contender is faster than a rival in the same rounds, paired by round."""
        if not self.seconds or not rival.seconds:
            return None
        pairs = zip(rival.seconds, self.seconds, strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs], self.quiet_rounds)


class Calibration:
    """A piece of work that always takes equally long on a quiet machine.

    Parameters:
        run: does the work, and returns its seconds.

    Attributes:
        best: the fewest seconds that it has ever taken.
    """

    def __init__(self, run: Callable[[], float]) -> None:
        self.run, self.best = run, math.inf

    def measure(self) -> float:
        seconds = self.run()
        self.best = min(self.best, seconds)
        return seconds

    def is_quiet(self, *seconds: float) -> bool:
        """Return whether none of some runs was slower than the best one by more than ``TOLERANCE``."""
        return max(seconds) <= (1 + TOLERANCE) * self.best


@functools.cache
def matrix_product(device: str = "cpu", dtype: str = "float32") -> Calibration:
    """Return the product of two square matrices with ``MATRIX`` rows: one per process, which remembers its best."""
    matrix = torch.ones(MATRIX, MATRIX, dtype=getattr(torch, dtype), device=device)
    return Calibration(lambda: seconds_of(lambda: torch.mm(matrix, matrix), matrix.device))


def interleaved(
    contenders: Sequence[Contender],
    rounds: int,
    calibration: Calibration,
    *,
    patience: int | None = None,
    on_turn: Callable[[int], None] = lambda turn: None,
) -> list[Timing]:
    """Run every contender once per round, in a rotating order, until enough rounds were quiet.

    Each contender first runs once without being counted, with the turn 0. One that raises an exception is left out
    from then on; the others continue.

    Parameters:
        contenders: called with the number of the round; each measures itself.
        rounds: the number of quiet rounds to reach.
        patience: the number of further rounds that may replace disturbed ones; by default as many as ``rounds``.
        on_turn: called with the number of the round after each contender's turn.
    """
    entrants = [_Entrant(contender) for contender in contenders]
    for entrant in entrants:
        entrant.run(0)
    for entrant in entrants:
        entrant.seconds.clear()
    beside: list[float] = [calibration.measure(), calibration.measure()][1:]  # the first one allocates memory
    most = rounds + (rounds if patience is None else patience)
    while len(_quiet(calibration, beside)) < rounds and len(beside) <= most:
        turn = len(beside) - 1
        first = turn % len(entrants)
        for entrant in entrants[first:] + entrants[:first]:
            entrant.run(turn)
            on_turn(turn)
        beside.append(calibration.measure())
    quiet = _quiet(calibration, beside)
    return [entrant.timing(quiet, range(len(beside) - 1)) for entrant in entrants]


def _quiet(calibration: Calibration, beside: Sequence[float]) -> list[int]:
    """Return the rounds that were quiet, by the seconds of the calibrations before and after each."""
    # Judged anew each time: a better calibration shows that earlier ones were slow.
    return [turn for turn, both in enumerate(itertools.pairwise(beside)) if calibration.is_quiet(*both)]


class _Entrant:
    """A contender on its way through the rounds."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.seconds: list[float] = []
        self.error: Exception | None = None

    def run(self, turn: int) -> None:
        if self.error is not None:
            return
        with _no_garbage_collection():
            try:
                self.seconds.append(self.contender(turn))
            except Exception as error:  # whatever it is, it is reported and the others go on
                self.error = error
                clear_frames(error)

    def timing(self, quiet: Sequence[int], all_rounds: Sequence[int]) -> Timing:
        if self.error is not None:
            return Timing(error=self.error)
        counted = quiet if len(quiet) >= FEWEST_ROUNDS else all_rounds
        return Timing(tuple(self.seconds[turn] for turn in counted), len(quiet))


def timed(call: Callable[[], object], device: torch.device, amount: int = 1) -> Contender:
    """Return a call as a contender: its seconds per unit of the ``amount`` that one call does."""
    return lambda turn: seconds_of(call, device) / amount


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, averaged over as many calls as a measurement takes."""
    calls, elapsed = 0, 0.0
    while elapsed < _FEWEST_SECONDS:
        elapsed += seconds_of_one(call, device)
        calls += 1
    return elapsed / calls


def seconds_of_one(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the seconds of a single call; with a GPU as ``device`` until that has finished."""
    started = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def clear_frames(error: BaseException | None) -> None:
    """Release the tensors of a failed call, which its frames hold: memory may be what it lacked."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn off garbage collection: with equal work it would hit the same contender each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
