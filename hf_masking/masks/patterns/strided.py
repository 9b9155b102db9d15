"""Every s-th key, counted from the query."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip


@dataclass(frozen=True)
class Strided(Pattern):
    """Every ``stride``-th key back from the query: ``(i - j) mod stride = 0``.

    One half of the strided pattern of Child et al., "Sparse Transformers" (https://arxiv.org/abs/1904.10509), which is
    ``strided:64|window:64``.

    Parameters:
        stride: distance from one key to the next, at least 1.

    ``strided:3``::

        1 0 0 0 0 0
        0 1 0 0 0 0
        0 0 1 0 0 0
        1 0 0 1 0 0
        0 1 0 0 1 0
        0 0 1 0 0 1
    """

    stride: int

    name: ClassVar[str] = "strided"

    def __post_init__(self) -> None:
        self._require_int("stride", 1)

    def strips(self) -> tuple[Strip, ...]:
        return (Strip(Progression(period=self.stride, stop=1)),)
