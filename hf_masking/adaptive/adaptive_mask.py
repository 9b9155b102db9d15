"""The one face of masks that look at the content."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from ..masks import Causal, Mask, Pattern
from ..masks.normal_form import NormalForm

TILE = 64  # queries, and keys, of the tiles that are skipped if no weight in them counts


@dataclass(frozen=True)
class LayerShape:
    """What a layer's attention looks like to the parameters of its mask."""

    hidden_size: int
    query_heads: int
    key_heads: int
    head_size: int


@dataclass(frozen=True, eq=False)
class Features:
    """What a mask reads of the tokens of a call: a few numbers for each query, and a few for each key.

    query: ``[B, Hq, Q, r]``; B is 1 where the rows of the batch do not differ, Q is 1 where the queries do not.
    key: ``[B, Hkv, K, s]``; None if the mask reads nothing of the keys.
    hard: small weights count as 0, as they do when nothing is learned.
    summaries: ``[B, Hkv, blocks, s]``, of the blocks of keys that are complete in some row; None if none are kept.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    hard: bool = True
    summaries: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        return self.query, self.key

    def of_queries(self, rows: slice) -> Features:
        """For some of the queries."""
        return self if self.query is None or self.query.shape[2] == 1 else replace(self, query=self.query[:, :, rows])

    def of_keys(self, columns: Tensor) -> Features:
        """For some of the keys ``[k]``."""
        return self if self.key is None else replace(self, key=self.key[:, :, columns])


@dataclass(frozen=True)
class AdaptiveMask(Pattern):
    """The content decides the weight of a pair: a number f from 0 to 1 with which its attention weight is multiplied.

    To multiply the weights of a softmax by f and to renormalise is the same as to add log f to its scores, which is how
    it is computed. A subclass is a value that says what is learned (`module`), and how f follows from what the module
    has read of query i and of key j <= i (`log_weight`), or which blocks of keys a query chooses (`selects`). Nothing
    may depend on a token behind the query.

    Other answers are optional, and make it cheap: pairs that are sure of weight 1 (`certain`), a distance from which on
    all weights are 0 (`reach`), tiles that count (`tiles_that_count`), and which heads have these in common (`lanes`).
    They are asked of one document, with features ``[Hq, Q, r]`` and ``[Hkv, K, s]``.
    """

    selects: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    reads_keys: ClassVar[bool] = False  # features of keys, which a cache must keep

    @property
    def is_adaptive(self) -> bool:
        return True

    def normal_form(self) -> NormalForm:
        return NormalForm(leaves=(self,), domain=self.envelope)

    @property
    def envelope(self) -> Mask:
        """A static mask outside of which the weight is 0, whatever the content."""
        return Causal()

    def module(self, shape: LayerShape) -> nn.Module:
        """The parameters of one layer; called with hidden states ``[B, N, hidden]`` it returns `Features`."""
        raise NotImplementedError

    def continues(self, other: AdaptiveMask) -> bool:
        """Whether what another mask has learned means the same here."""
        return self == other

    def log_weight(self, query: Tensor | None, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        """log f of a tile, differentiable.

        Parameters:
            query: features of its queries ``[..., q, r]``.
            key: features of its keys ``[..., k, s]``.
            distance: ``i - j`` of its pairs, integers ``[..., q, k]``.
            hard: as in `Features`.
        """
        raise NotImplementedError

    def certain(self, features: Features, heads: slice) -> Mask | None:
        """A static mask whose pairs have weight 1 for all of these query heads (one row of a batch)."""
        return None

    def reach(self, features: Features, heads: slice) -> Tensor | None:
        """From which distance on all weights are 0, for these query heads: ``[Q or 1]`` integers, None for never."""
        return None

    def tiles_that_count(self, features: Features, heads: slice, group: int) -> Tensor | None:
        """Which tiles have a weight above 0, as booleans ``[queries / TILE, keys / TILE]``.

        May be too many, but not too few; None where that is not known without computing them.
        """
        return None

    def lanes(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        """For each query head what it has in common with its neighbours: equal neighbours are computed together.

        Parameters:
            heads: number of query heads.
            group: how many of them share a key head.
        """
        return [None] * heads

    def reads(self, features: Features) -> Mask:
        """The keys that later queries may read, as a static mask: what a cache keeps."""
        return self.envelope

    def last_reader(self, k: Tensor) -> Tensor:
        return self.envelope.last_reader(k)

    @property
    def lookahead(self) -> int:
        return 0

    def __str__(self) -> str:
        shown = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        arguments = [f"{name}={_as_text(value)}" for name, value, default in shown if value != default]
        # What has no default comes first in the fields and is always shown.
        return f"{self.name}:{','.join(arguments)}" if arguments else self.name

    def strips(self) -> NoReturn:
        """Refuse every question about pairs: all their answers follow from strips."""
        raise ValueError(
            f"what '{self}' allows depends on the content; effective_mask(model, ...) shows it for a batch"
        )

    def _require(self, field: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ValueError(f"{self.name}: `{field}` must be {expected}, got {getattr(self, field)!r}")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Exactly, and without an exponent, which a spec has not.
    return f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision would round spans of a thousand tokens to multiples of four."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
