"""A sliding window."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """The last ``window`` keys **including the query itself**: ``0 <= i - j < window``.

    As ``sliding_window`` in Transformers; flash-attention writes ``window - 1``. Beltagy et al.,
    "Longformer" (https://arxiv.org/abs/2004.05150); Jiang et al., "Mistral 7B" (https://arxiv.org/abs/2310.06825).

    Parameters:
        window: number of keys a query sees, at least 1.

    ``window:3``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        0 1 1 1 0 0
        0 0 1 1 1 0
        0 0 0 1 1 1
    """

    window: int

    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        self._require_int("window", 1)

    def strips(self) -> tuple[Strip, ...]:
        return (Strip(Progression(hi=self.window)),)
