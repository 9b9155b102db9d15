"""`Batch`: which tokens of a forward are real, in which document each is, and which are marked."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..masks import MaskExpression
from ..masks.marks import Marks
from ..plan import Documents
from ..plan.documents import PADDING, positions_in_documents
from .sharding import Sharding


@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of a forward, the cached ones first. A column is the place of a token in its row, padding included.

    seen, new: number of cached columns, and of those that come with this forward.
    ids: the document of each token ``[B, N]``, PADDING for none; None where every token is in document 0.
    packed: a row may hold several documents; None where the forward's arguments were not read.
    marks: the marks of each token ``[B, 2, N]``, as in `Documents`; None where no mask needs them.
    cache: the cache, if its layers are `MaskedLayer`s, which know which columns they retain.
    attentions: the caller wants the attention probabilities.
    for_loss: the names of arguments that the model's loss reads, and no model inside it.
    sharding: under sequence parallelism, the shards of all ranks; then ids and marks are those of all columns.

    B is 1 where all rows are alike.
    """

    seen: int = 0
    new: int = 0
    ids: Tensor | None = None
    packed: bool | None = None
    marks: Tensor | None = None
    cache: Cache | None = None
    attentions: bool = False
    for_loss: frozenset[str] = frozenset()
    sharding: Sharding | None = None

    @functools.cached_property
    def marked(self) -> int:
        """The number of columns up to the last one of a marked span."""
        columns = None if self.marks is None else (self.marks[:, 0] >= 0).any(0).nonzero()
        return 0 if columns is None or not len(columns) else int(columns[-1]) + 1

    @property
    def prompts(self) -> Tensor | None:
        """The number of prompt tokens of each row or one for all ``[B]``; None if rows hold several documents."""
        return None if self.marks is None or self.packed else self.marks[:, 1, 0]

    def count(self, columns: int) -> Tensor:
        """Return the number of real tokens in the first columns, for each row or one for all ``[B]``."""
        return torch.tensor([columns]) if self.ids is None else (self.ids[:, :columns] >= 0).sum(-1)

    def positions(self, columns: Tensor) -> Tensor:
        """Return the position of the tokens in these columns ``[k]``, for each row or one for all ``[B, k]``."""
        return columns[None] if self._positions is None else _in_columns(self._positions, columns)

    def readable(self, mask: MaskExpression, columns: Tensor, first: int) -> Tensor:
        """Return the indices of those columns ``[k]`` that a token in a column from ``first`` on may attend to."""
        positions, next_query = self.positions(columns), self.count(first).to(columns.device)[:, None]
        live = (positions >= 0) & (self._last_reader(mask, positions) >= next_query)
        return live.any(0).nonzero()[:, 0]

    def documents(self, columns: Tensor) -> Documents:
        """Return positions and documents: of the new tokens as queries, and of these cached columns ``[k]`` as keys."""
        new = torch.arange(self.seen, self.seen + self.new, device=columns.device)
        positions = [self.positions(where).int() for where in (new, columns)]
        if self.ids is None:
            ids = [torch.zeros_like(where) for where in positions]
        else:
            ids = [_in_columns(self.ids, where).int() for where in (new, columns)]
        marks = None if self.marks is None else _in_columns(self.marks, columns)
        scattered = len(columns) > 0 and int(columns[-1] - columns[0]) != len(columns) - 1
        return Documents(positions[0], ids[0], positions[1], ids[1], marks, scattered)

    def _last_reader(self, mask: MaskExpression, positions: Tensor) -> Tensor:
        """Return the greatest position after all marked spans that may attend to each key ``[B, k]``."""
        if self.prompts is None:
            return mask.unmarked.union.last_reader(positions)
        # Marked spans came in full, so later queries see no more of them; a prompt they may see.
        rows = zip(positions, self.prompts.tolist(), strict=True)
        return torch.stack([mask.bind(Marks(prompt=prompt)).union.last_reader(row) for row, prompt in rows])

    @functools.cached_property
    def _positions(self) -> Tensor | None:
        if self.ids is None:
            return None
        if self.packed:
            return positions_in_documents(self.ids)
        real = self.ids >= 0
        return torch.where(real, real.cumsum(-1) - 1, PADDING)


def _in_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Return ``x[..., columns]`` on the device of the columns: a model's layers may be on several."""
    return x[..., columns.to(x.device)].to(columns.device)
