"""Pack a text into contexts while it is read: for texts that do not fit into memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .data import Contexts


@dataclass(frozen=True)
class TokenStream:
    """The token ids of consecutive documents.

    documents: called with a number of documents to skip, returns those after them; the same in every pass.
    buffer: number of waiting contexts from which the next one is drawn; 1 keeps the order.
    """

    documents: Callable[[int], Iterable[Sequence[int]]]
    buffer: int = 1


class Streamed:
    """The contexts of a stream, in endless passes; each token is a label once per pass.

    Every process reads the whole stream and takes its share, so the contexts of a step do not depend on the number of
    processes. `state_dict` holds the place in the stream and the waiting contexts: a resumed run continues with the
    next document.
    """

    def __init__(self, stream: TokenStream, context: int, batch_size: int, seed: int) -> None:
        if stream.buffer < 1:
            raise ValueError(f"the buffer must hold at least 1 context, got {stream.buffer}")
        self.stream, self.context, self.batch_size, self.seed = stream, context, batch_size, seed
        self.documents_read = 0
        self.tokens_read = 0
        self.left: list[int] = []
        self.waiting: list[Tensor] = []
        self.reading: Iterator[Sequence[int]] | None = None

    def of_step(self, step: int) -> Contexts:
        """Return the next contexts; steps must be asked for in order."""
        rows = torch.stack([self._draw(place) for place in range(step * self.batch_size, (step + 1) * self.batch_size)])
        return Contexts(rows[:, :-1], rows[:, 1:])

    def ready(self) -> None:
        """Read what the next step needs; raise a ValueError if the text is too short or cannot be read."""
        while len(self.waiting) < self.stream.buffer:
            self.waiting.append(self._next())

    def _draw(self, place: int) -> Tensor:
        self.ready()
        # A function of the place, so that no generator state has to be saved.
        return self.waiting.pop(random.Random(f"{self.seed} {place}").randrange(self.stream.buffer))

    def _next(self) -> Tensor:
        """Return the next context and the token after it, which is the first one of the following context."""
        while len(self.left) <= self.context:
            self.left += self._document()
        row = torch.tensor(self.left[: self.context + 1])
        del self.left[: self.context]
        return row

    def _document(self) -> Sequence[int]:
        if self.reading is None:
            self.reading = iter(self.stream.documents(self.documents_read))
        document = next(self.reading, None)
        if document is not None:
            self.documents_read += 1
            self.tokens_read += len(document)
            return document
        if self.tokens_read <= self.context:
            raise ValueError(
                f"the stream to train on has {self.tokens_read} tokens, and one context of {self.context} needs "
                f"{self.context + 1}; name a longer one or use a shorter context"
            )
        self.documents_read, self.tokens_read, self.reading = 0, 0, None
        return []

    def state_dict(self) -> dict[str, Any]:
        return {
            "documents_read": self.documents_read,
            "tokens_read": self.tokens_read,
            "left": torch.tensor(self.left, dtype=torch.long),
            "waiting": torch.stack(self.waiting) if self.waiting else torch.empty(0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.documents_read, self.tokens_read = state["documents_read"], state["tokens_read"]
        self.left, self.waiting = state["left"].tolist(), list(state["waiting"])
        self.reading = None
