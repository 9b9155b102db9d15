"""The last columns of every stride, which all later queries see."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip


@dataclass(frozen=True)
class Summary(Pattern):
    """The last ``width`` keys of each stretch of ``stride``: ``j mod stride >= stride - width`` and ``j <= i``.

    The "fixed" columns of Child et al., "Sparse Transformers" (https://arxiv.org/abs/1904.10509); their whole
    pattern is ``block_local:128|summary:128,8``.

    Parameters:
        stride: length of a stretch, at least 1.
        width: number of keys at its end, from 1 to ``stride``.

    ``summary:3,1``::

        0 0 0 0 0 0
        0 0 0 0 0 0
        0 0 1 0 0 0
        0 0 1 0 0 0
        0 0 1 0 0 0
        0 0 1 0 0 1
    """

    stride: int
    width: int

    name: ClassVar[str] = "summary"

    def __post_init__(self) -> None:
        self._require_int("stride", 1)
        self._require_int("width", 1, self.stride)

    def strips(self) -> tuple[Strip, ...]:
        return (Strip(keys=Progression(period=self.stride, start=self.stride - self.width)),)
