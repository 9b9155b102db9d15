"""The arguments of one attention call, as every backend takes them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import MaskExpression
from ..plan import DocumentMask, Documents, document_masks


class Options(NamedTuple):
    """How scores become weights, as in `masked_attention`."""

    scale: float
    dropout: float = 0.0
    softcap: float | None = None
    sink_logits: Tensor | None = None

    @property
    def needed(self) -> list[str]:
        """The names of the options that not every backend supports and that this call uses."""
        used = {
            "dropout": self.dropout > 0,
            "softcap": self.softcap is not None,
            "sink_logits": self.sink_logits is not None,
        }
        return [name for name, is_used in used.items() if is_used]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One attention call: query ``[B, H, N, D]``, key ``[B, G, M, D]``, value ``[B, G, M, Dv]``, and what it is under.

    features: of each weighting of the mask, in order.
    summaries: for a mask that selects, of the completed blocks of keys ``[B, G, blocks, s]``, if a cache keeps them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: MaskExpression
    documents: Documents
    options: Options
    features: Sequence[Features] = ()
    summaries: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def group(self) -> int:
        """The number of query heads that share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def needs_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in self.tensors)

    def to(self, dtype: torch.dtype) -> Inputs:
        """Return the same with query, key and value in another precision."""
        if all(x.dtype == dtype for x in self.tensors):
            return self
        query, key, value = (x.to(dtype) for x in self.tensors)
        return replace(self, query=query, key=key, value=value)

    @functools.cached_property
    def document_masks(self) -> tuple[DocumentMask, ...]:
        """The mask of each document and group of query heads, with its plan: for choosing a backend and for running it.

        Raises:
            ValueError: the positions of a document's tokens have gaps.
        """
        return tuple(document_masks(self.mask, self.documents, self.query.shape[1]))


def check_heads(mask: MaskExpression, n_heads: int) -> None:
    """Raise a ValueError unless the mask's groups of heads divide the number of query heads."""
    if n_heads % len(mask.heads):
        raise ValueError(
            f"{mask} gives {len(mask.heads)} groups of heads, which do not divide {n_heads} query heads; "
            "give as many masks as divide them"
        )
