"""The first tokens, kept for everybody."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip


@dataclass(frozen=True)
class Sinks(Pattern):
    """The first ``count`` keys of the document, for every query from there on: ``j < count`` and ``j <= i``.

    Pretrained models lean on them: a window alone collapses as soon as they leave. Xiao et al., "Efficient
    Streaming Language Models with Attention Sinks" (https://arxiv.org/abs/2309.17453). Here positions stay the true
    ones. Not the learned sink *logits* of gpt-oss.

    Parameters:
        count: number of first tokens, at least 1.

    ``sinks:2``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 0 0 0 0
        1 1 0 0 0 0
        1 1 0 0 0 0
        1 1 0 0 0 0
    """

    count: int

    name: ClassVar[str] = "sinks"

    def __post_init__(self) -> None:
        self._require_int("count", 1)

    def strips(self) -> tuple[Strip, ...]:
        return (Strip(keys=Progression(hi=self.count)),)
