"""The first tokens of a document, as attention sinks."""

from dataclasses import dataclass
from typing import ClassVar

from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip


@dataclass(frozen=True)
class Sinks(Pattern):
    """The first ``count`` keys of the document, for every query from there on: ``j < count`` and ``j <= i``.

    Pretrained models depend on them: under a window alone, perplexity explodes once they are out of reach. Xiao et al.,
    "Efficient Streaming Language Models with Attention Sinks" (https://arxiv.org/abs/2309.17453). Unlike there,
    positions are not renumbered. These are not the learned sink *logits* of gpt-oss.

    Parameters:
        count: number of sink tokens, at least 1.

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
