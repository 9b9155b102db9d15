"""A sliding window with gaps."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import FOREVER, Progression
from ..strip import Strip


@dataclass(frozen=True)
class Dilated(Pattern):
    """``window`` keys, each ``dilation`` apart: ``0 <= i - j < window * dilation`` and ``(i - j) mod dilation = 0``.

    The causal form of the dilated window of Beltagy et al., "Longformer" (https://arxiv.org/abs/2004.05150).

    Parameters:
        window: number of keys a query sees, itself included, at least 1.
        dilation: distance from one key to the next, at least 1.

    ``dilated:2,3``::

        1 0 0 0 0 0 0
        0 1 0 0 0 0 0
        0 0 1 0 0 0 0
        1 0 0 1 0 0 0
        0 1 0 0 1 0 0
        0 0 1 0 0 1 0
        0 0 0 1 0 0 1
    """

    window: int
    dilation: int

    name: ClassVar[str] = "dilated"

    def __post_init__(self) -> None:
        self._require_int("window", 1)
        self._require_int("dilation", 1)

    def strips(self) -> tuple[Strip, ...]:
        reach = min(self.window * self.dilation, FOREVER)
        return (Strip(Progression(hi=reach, period=self.dilation, stop=1)),)
