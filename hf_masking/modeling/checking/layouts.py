"""The layouts in which the checks put documents into a row: one, padded, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...masks import MaskExpression
from ...masks.marks import Marks

LENGTH = 12
MARKED = 3  # number of tokens at the start of a document that are its prefix, its marked span and its prompt


@dataclass(frozen=True)
class Layout:
    """A layout of documents in a row: the document of each column, PADDING (-1) for none."""

    name: str
    ids: tuple[int, ...]

    @property
    def positions(self) -> list[int]:
        """The position ids of the columns: the index in the document, and for padding that of the token before."""
        counts: dict[int, int] = {}
        positions = []
        for document in self.ids:
            counts[document] = counts.get(document, -1) + (document >= 0)
            positions.append(max(0, counts[document] if document >= 0 else max(counts.values())))
        return positions

    @property
    def spans(self) -> list[int]:
        """The marked span of each column, -1 for none."""
        spans = zip(self.ids, self.positions, strict=True)
        return [document if position < MARKED else -1 for document, position in spans]

    def allowed(self, mask: MaskExpression) -> Tensor:
        """Return the allowed pairs ``[N, N]``; those that an adaptive mask may allow count as allowed."""
        positions, n = self.positions, len(self.ids)
        allowed = mask.bind(Marks(((0, MARKED),), MARKED)).union.normal_form().bound.dense(n)
        pairs = [
            [self.ids[i] == self.ids[j] >= 0 and bool(allowed[positions[i], positions[j]]) for j in range(n)]
            for i in range(n)
        ]
        return torch.tensor(pairs)


PLAIN = Layout("one document", (0,) * LENGTH)
PADDED = Layout("padding on both sides and a hole", (-1, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1))
PACKED = Layout("packed documents", (0,) * 5 + (1,) * 7)
LAYOUTS = (PLAIN, PADDED, PACKED)
