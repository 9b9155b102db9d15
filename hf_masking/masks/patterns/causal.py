"""All keys up to the query."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..strip import Strip


@dataclass(frozen=True)
class Causal(Pattern):
    """Every key that is not after the query: ``j <= i``.

    The decoder of Vaswani et al., "Attention Is All You Need" (https://arxiv.org/abs/1706.03762).

    ``causal``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        1 1 1 1 0 0
        1 1 1 1 1 0
        1 1 1 1 1 1
    """

    name: ClassVar[str] = "causal"

    def strips(self) -> tuple[Strip, ...]:
        return (Strip(),)
