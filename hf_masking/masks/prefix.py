"""The beginning, both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .both_ways import BothWays, Bounds


@dataclass(frozen=True)
class Prefix(BothWays):
    """The tokens of the prefix see each other both ways: ``i < p`` and ``j < p``. The rest sees nothing by it.

    Prefix language models are ``prefix|causal``: what is read is seen both ways, what is written is causal, so that
    generation stays autoregressive. ``prefix|window:512`` keeps a window for the rest. Raffel et al., "Exploring the
    Limits of Transfer Learning with a Unified Text-to-Text Transformer" (https://arxiv.org/abs/1910.10683, fig. 3).

    Parameters:
        length: number of tokens p of the prefix. By default it comes with the batch, a row each: ``prefix_lengths=``
            of a patched model's forward, or the prompt in `generate`.

    ``prefix:3``::

        1 1 1 0 0 0
        1 1 1 0 0 0
        1 1 1 0 0 0
        0 0 0 0 0 0
        0 0 0 0 0 0
        0 0 0 0 0 0
    """

    length: int | None = None

    name: ClassVar[str] = "prefix"

    def __post_init__(self) -> None:
        if self.length is not None:
            self._require_int("length", 0)

    @property
    def bounds(self) -> Bounds | None:
        return None if self.length is None else ((0, self.length),)

    def bind(self, spans: Bounds) -> Prefix:
        if self.is_bound:
            return self
        return Prefix(next((stop for start, stop in spans if start == 0), 0))
