"""A bidirectional prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..marks import Bounds, Marks
from .bidirectional import Bidirectional


@dataclass(frozen=True)
class Prefix(Bidirectional):
    """The tokens of the prefix see each other bidirectionally: ``i < p`` and ``j < p``. It allows no other pairs.

    Prefix language models are ``prefix|causal``: the given text is bidirectional and the generated text causal, so that
    generation stays autoregressive. ``prefix|window:512`` has a window after the prefix. Raffel et al., "Exploring the
    Limits of Transfer Learning with a Unified Text-to-Text Transformer" (https://arxiv.org/abs/1910.10683, fig. 3).

    Parameters:
        length: number of tokens p of the prefix. By default it comes with the batch, one per row: ``prefix_lengths=``
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

    def bind(self, marks: Marks) -> Prefix:
        return Prefix(next((stop for start, stop in marks.spans if start == 0), 0)) if self.needs else self
