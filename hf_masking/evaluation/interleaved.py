"""Measure the perplexity of one text under several models, interleaved and after a warm-up."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from ..modeling import evaluating
from .scoring import Perplexity, Tally, Window, WindowedText


@dataclass(frozen=True)
class Measurement:
    """The measurement of a model, or the error that stopped it."""

    result: Perplexity | None = None
    tokens_per_second: float | None = None
    error: Exception | None = None


def side_by_side(
    models: Sequence[nn.Module],
    text: WindowedText,
    *,
    text_bytes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Measurement]:
    """Measure every model on the same batches, interleaved: each batch by all models, in a rotating order.

    One batch of each model is run before the clock starts. A model that raises an exception is left out from then on;
    the others continue.

    Parameters:
        models: causal models, which may share weights.
        text_bytes: length of the text in UTF-8, for bits per byte.
        on_progress: called with the number of tokens that one of the models has just scored.
    """
    runs = [_Run(model, text) for model in models]
    with ExitStack() as modes:
        for run in runs:
            modes.enter_context(evaluating(run.model))
            run.warm_up()
        for turn, batch in enumerate(text.batches()):
            first = turn % len(runs)
            for run in runs[first:] + runs[:first]:
                run.score(batch)
                if on_progress is not None:
                    on_progress(len(batch) * batch[0].scored)
    return [run.measurement(text_bytes) for run in runs]


class _Run:
    """A model on its way through a text."""

    def __init__(self, model: nn.Module, text: WindowedText) -> None:
        self.model, self.text = model, text
        self.start()
        self.error: Exception | None = None

    def start(self) -> None:
        self.tally, self.seconds = Tally(self.text.context), 0.0

    def warm_up(self) -> None:
        self.score(next(self.text.batches()))
        self.start()

    def score(self, batch: list[Window]) -> None:
        if self.error is not None:
            return
        with _no_garbage_collection():
            started = time.perf_counter()
            try:
                # Adding moves the losses to the CPU, which waits for the GPU.
                self.tally.add(batch, self.text.losses(self.model, batch))
            except Exception as error:  # whatever it is, the row reports it
                self.error = error
                _clear_frames(error)
            self.seconds += time.perf_counter() - started

    def measurement(self, text_bytes: int | None) -> Measurement:
        if self.error is not None:
            return Measurement(error=self.error)
        result = self.tally.result(text_bytes)
        return Measurement(result, result.tokens / self.seconds)


def _clear_frames(error: BaseException | None) -> None:
    """Release the tensors of a failed forward, which its frames hold: memory may be what it lacked."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn off garbage collection: with equal work it would hit the same model each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
