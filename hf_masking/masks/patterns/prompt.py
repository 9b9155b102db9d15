"""The prompt of a document, for every query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ..marks import Marks, unknown
from ..pattern import Pattern
from ..progression import Progression
from ..strip import Strip

_Self = TypeVar("_Self", bound="OfPrompt")


@dataclass(frozen=True)
class OfPrompt(Pattern):
    """The base of masks that depend on where the prompt ends."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None:
            self._require_int("length", 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"prompt"} if self.length is None else ())

    def bind(self: _Self, marks: Marks) -> _Self:
        return type(self)(marks.prompt) if self.needs else self

    def _length(self) -> int:
        """Return the number of prompt tokens; raise a ValueError if only the batch knows it."""
        if self.length is None:
            raise unknown(self.name)
        return self.length


@dataclass(frozen=True)
class Prompt(OfPrompt):
    """The keys of the prompt, for every query from there on: ``j < p`` and ``j <= i``.

    Like `sinks`, whose number p comes with the batch. ``prompt|window:512`` generates with the whole prompt and a
    window over what is generated; its cache retains p + 512 keys.

    Parameters:
        length: number of tokens p of the prompt. By default it comes with the batch, one per row: ``prompt_lengths=``
            of a patched model's forward, or the prompt in `generate`.

    ``prompt:3``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        1 1 1 0 0 0
        1 1 1 0 0 0
        1 1 1 0 0 0
    """

    name: ClassVar[str] = "prompt"

    def strips(self) -> tuple[Strip, ...]:
        length = self._length()
        return (Strip(keys=Progression(hi=length)),) if length else ()
