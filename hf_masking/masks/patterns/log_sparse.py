"""Distances that grow exponentially."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import FOREVER
from ..strip import Strip
from .offsets import strips_of_offsets


@dataclass(frozen=True)
class LogSparse(Pattern):
    """The query and the keys at distances 1, base, base², ...: about log(N) keys per query.

    Li et al., "Enhancing the Locality and Breaking the Memory Bottleneck of Transformer on Time Series Forecasting"
    (https://arxiv.org/abs/1907.00235).

    Parameters:
        base: factor from one distance to the next, at least 2.

    ``log_sparse``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        0 1 1 1 0 0
        1 0 1 1 1 0
        0 1 0 1 1 1
    """

    base: int = 2

    name: ClassVar[str] = "log_sparse"

    def __post_init__(self) -> None:
        self._require_int("base", 2)

    def strips(self) -> tuple[Strip, ...]:
        return strips_of_offsets(self._offsets())

    def _offsets(self) -> Iterator[int]:
        yield 0
        power = 1
        while power < FOREVER:
            yield power
            power *= self.base
