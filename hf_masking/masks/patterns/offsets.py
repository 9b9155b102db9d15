"""A set of distances."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..pattern import Pattern, require_int
from ..progression import FOREVER, Progression
from ..strip import Strip


@dataclass(frozen=True)
class Offsets(Pattern):
    """The keys at the given distances: ``i - j`` in ``offsets``.

    Distance 0 is the query itself. Without it the first queries may attend to nothing; their output is 0.

    Parameters:
        offsets: distances, at least 0, in any order; duplicates are dropped.

    ``offsets:0,1,4``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        0 1 1 0 0 0
        0 0 1 1 0 0
        1 0 0 1 1 0
        0 1 0 0 1 1
    """

    offsets: tuple[int, ...]

    name: ClassVar[str] = "offsets"

    def __post_init__(self) -> None:
        if not isinstance(self.offsets, Iterable) or not (offsets := tuple(self.offsets)):
            raise ValueError(f"offsets: expected at least one distance such as (0, 1, 2, 4), got {self.offsets!r}")
        for offset in offsets:
            require_int("offsets: each distance", offset, 0, FOREVER - 1)
        object.__setattr__(self, "offsets", tuple(sorted(set(offsets))))

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> "Offsets":
        if keywords:
            raise ValueError(f"offsets: expected distances only, got {next(iter(keywords))}=...")
        return cls(arguments)

    def arguments(self) -> tuple[Any, ...]:
        return self.offsets

    def strips(self) -> tuple[Strip, ...]:
        return strips_of_offsets(self.offsets)


def strips_of_offsets(offsets: Iterable[int]) -> tuple[Strip, ...]:
    """Return one strip for each run of neighbouring distances, which are in ascending order."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset:
            runs[-1][1] += 1
        else:
            runs.append([offset, offset + 1])
    return tuple(Strip(Progression(lo, hi)) for lo, hi in runs)
