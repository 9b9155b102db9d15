"""Measure the perplexity of one text under several models, interleaved and after a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from ..modeling import evaluating
from .scoring import Perplexity, Tally, Window, WindowedText
from .timing import Spread, Timing, interleaved, matrix_product, seconds_of_one


@dataclass(frozen=True)
class Measurement:
    """The measurement of a model, or the error that stopped it. The speed is spread over the batches."""

    result: Perplexity | None = None
    tokens_per_second: Spread | None = None
    error: Exception | None = None


def side_by_side(
    models: Sequence[nn.Module],
    text: WindowedText,
    *,
    text_bytes: int | None = None,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> list[Measurement]:
    """Measure every model on the same batches, interleaved: each batch by all models, in a rotating order.

    One batch of each model is run before the clock starts. A model that raises an exception is left out from then on;
    the others continue. A batch is scored once: rounds in which the machine was busy are not repeated.

    Parameters:
        models: causal models, which may share weights.
        text_bytes: length of the text in UTF-8, for bits per byte.
        on_progress: called with the number of tokens that one of the models has just scored.
    """
    batches = list(text.batches())
    scored = [len(batch) * batch[0].scored for batch in batches]
    runs = [_Run(model, text, batches) for model in models]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        timings = interleaved(
            [run.score for run in runs],
            len(batches),
            matrix_product(str(next(models[0].parameters()).device)),
            patience=0,
            on_turn=lambda turn: on_progress(scored[turn]),
        )
    return [run.measurement(timing, text_bytes) for run, timing in zip(runs, timings, strict=True)]


class _Run:
    """A model on its way through a text."""

    def __init__(self, model: nn.Module, text: WindowedText, batches: Sequence[list[Window]]) -> None:
        self.model, self.text, self.batches = model, text, batches
        self.tally, self.next = Tally(text.context), 0

    def score(self, turn: int) -> float:
        """Score a batch, and return the seconds per token."""
        batch = self.batches[turn]
        losses: list[Tensor] = []
        # Moving the losses to the CPU waits for the GPU.
        seconds = seconds_of_one(lambda: losses.append(self.text.losses(self.model, batch).cpu()))
        if turn == self.next:  # the warm-up scores the first batch before its turn
            self.tally.add(batch, losses[0])
            self.next += 1
        return seconds / losses[0].numel()

    def measurement(self, timing: Timing, text_bytes: int | None) -> Measurement:
        if timing.error is not None:
            return Measurement(error=timing.error)
        return Measurement(self.tally.result(text_bytes), timing.per_second(1))
