"""Draw the questions of a probe: the same for every model and mask."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ...errors import FieldError
from .item import Item, Task

_APART = 4  # tokens between two distances, at least
_MOST = 2**24  # tokens of a context


class Questions:
    """The contexts of a probe, drawn anew whenever they are iterated over, and always the same.

    The parameters are those of `probe`. ``len`` is the number of questions.

    Raises:
        ValueError: a context that is too short for the task, or a distance that it has no room for.
    """

    def __init__(
        self,
        task: Task,
        context: int,
        *,
        distances: Sequence[int] | None = None,
        questions: int = 64,
        seed: int = 0,
        bos_token_id: int | None = None,
    ) -> None:
        if not 1 <= questions < 2**31:
            raise FieldError("questions", f"must be from 1 to 2147483647, got {questions}")
        if not 0 <= seed < 2**63:
            raise FieldError("seed", f"must be from 0 to 9223372036854775807, got {seed}")
        if context > _MOST:
            raise FieldError("context", f"must be at most {_MOST:,}, got {context}")
        self.task, self.context, self.seed, self.bos_token_id = task, context, seed, bos_token_id
        self.length = context if bos_token_id is None else context - 1
        self.distances = self._checked(distances)
        self.first_round = self._round(torch.Generator().manual_seed(seed))
        self.in_a_round = sum(len(item.right) for item in self.first_round)
        self.rounds = math.ceil(questions * len(self.distances) / self.in_a_round)

    def __len__(self) -> int:
        return self.rounds * self.in_a_round

    def __iter__(self) -> Iterator[Item]:
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.rounds):
            yield from self._round(draw)

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Yield the items in batches."""
        if size < 1:
            raise FieldError("batch_size", f"must be at least 1, got {size}")
        waiting = iter(self)
        while batch := [item for _, item in zip(range(size), waiting, strict=False)]:
            yield batch

    def _round(self, draw: torch.Generator) -> list[Item]:
        items = self.task.items(self.length, self.distances, draw)
        return items if self.bos_token_id is None else [item.after(self.bos_token_id) for item in items]

    def _checked(self, distances: Sequence[int] | None) -> Sequence[int]:
        nearest, farthest = self.task.reach(self.length)
        if farthest < nearest:
            least = self.context + nearest - farthest
            raise FieldError("context", f"must be at least {least} tokens for this probe, got {self.context}")
        if distances is None:
            return _log_spaced(nearest, farthest)
        if not distances or min(distances) < nearest or max(distances) > farthest:
            got = list(distances)
            raise FieldError("distances", f"must be from {nearest} to {farthest} in this context, got {got}")
        return distances


def _log_spaced(nearest: int, farthest: int) -> list[int]:
    """Return distances that double from the nearest on, and the farthest."""
    doubled = [nearest * 2**power for power in range((farthest // nearest).bit_length())]
    return [distance for distance in doubled if distance + max(_APART, distance // 2) <= farthest] + [farthest]
