"""Decide which keys of a layer later queries may still read, and evict the others.

A mask says of each key the last position that may attend to it, so eviction is exact: a theorem, not a policy.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...adaptive import Features
from ...attention import takes_gaps
from ...masks import Causal, MaskExpression
from ..patching.layer_mask import LayerMask, attached
from ..running import Running

ROLLBACK = 64  # this many last tokens can be taken back (assisted decoding does), whatever has been evicted


def read_by_later(mask: MaskExpression, features: Sequence[Features]) -> MaskExpression:
    """Return a static mask of the keys that later queries may read under a mask.

    Parameters:
        features: of each weighting of the mask, in order: what it has learned decides how far back it reads.
    """
    if not mask.is_adaptive:
        return mask
    form = mask.normal_form()
    if form.selection is not None:
        # Every block is scored, even one that an intersection then excludes.
        return Causal() if form.full is None else form.full | Causal()
    reads = [weighting.reads(one) for weighting, one in zip(form.weights, features, strict=True)]
    assert form.domain is not None
    read = functools.reduce(operator.and_, (one for one in reads if one != Causal()), form.domain)
    return read if form.full is None else form.full | read


class Eviction:
    """The rule by which a layer of a cache evicts keys, and what it has evicted.

    layer_mask, window: the mask of the layer, and the model's own window there.
    reads: a static mask of what later queries read; None before the first call.
    floor: cropped to fewer tokens than this, the cache would lack keys that it has evicted.
    marked: the least length to crop to that leaves no part of a bidirectional prefix or span.
    prompts: number of prompt tokens of each row, or one for all ``[B]``; None if no mask needs it, and for packed rows.
    """

    def __init__(self, layer_mask: LayerMask, window: int | None) -> None:
        self.layer_mask, self.window = layer_mask, window
        self.mask = layer_mask.under(window)
        # A backend that computes neighbouring keys only needs all of them.
        self.evicts = takes_gaps(layer_mask.backend)
        self.reads: MaskExpression | None = None
        self.floor = self.marked = 0
        self.prompts: Tensor | None = None
        # At the last eviction: a number of columns, and how many of them held real tokens, by row.
        self._real: tuple[int, Tensor] | None = None

    def begin(self, call: Running) -> None:
        """Begin a call: work out what later queries read, and refuse what would be silently wrong.

        Raises:
            ValueError: the mask has learned since the cache was filled, or ``attention_mask`` differs from before.
        """
        self._follow(call)
        self.marked = max(self.marked, call.batch.marked)
        self.prompts = call.batch.prompts
        if self._real is not None:
            count = call.count(self._real[0])
            if not bool((count == self._real[1].to(count.device)).all()):
                raise ValueError(
                    "attention_mask differs from the previous call on tokens that are already cached, and keys were "
                    "evicted based on it; pass the full mask (cached and new tokens) in every call"
                )

    def _follow(self, call: Running) -> None:
        if self.mask.weightings:
            attending = attached(call.module)
            if attending is None:
                return  # the layer's mask is not adaptive any more, which `require` refuses
            self._require_mask(attending)
        reads = read_by_later(self.mask, call.features)
        if self.reads not in (None, reads):
            raise ValueError(
                f"this cache was filled under '{self.layer_mask.mask}', which has learned since; start with an empty "
                "cache"
            )
        self.reads = reads

    def require(self, layer_mask: LayerMask, sliding_window: int | None) -> None:
        """Raise a ValueError if the layer attends under another mask, or a wider window, than the cache was told.

        Parameters:
            layer_mask, sliding_window: what the layer attends under.
        """
        self._require_mask(layer_mask)
        if self.window and not layer_mask.replace_model_window and not 0 < (sliding_window or 0) <= self.window:
            raise ValueError(
                f"the model's config says that this layer has a window of {self.window}, and its attention runs with "
                f"sliding_window={sliding_window}; set config.sliding_window to what the model does"
            )

    def _require_mask(self, layer_mask: LayerMask) -> None:
        if layer_mask is self.layer_mask:
            return
        if layer_mask != replace(self.layer_mask, backend=layer_mask.backend):
            raise ValueError(
                f"this cache was filled under '{self.layer_mask.mask}', and the layer's mask is '{layer_mask.mask}' "
                "now; start with an empty cache"
            )
        if self.floor and not takes_gaps(layer_mask.backend):
            raise ValueError(
                f"this cache has evicted keys, and backend {layer_mask.backend!r} computes neighbouring keys only; "
                "start with an empty cache, or use backend='auto'"
            )

    def live(self, call: Running, columns: Tensor, seen: int) -> Tensor | None:
        """Return the indices of the columns to retain, as if the last `ROLLBACK` tokens were taken back; None for all.

        Parameters:
            columns: those that are retained.
            seen: number of columns that there have been.
        """
        first = max(0, seen - ROLLBACK)
        if call.batch.packed or not self.evicts or self.reads is None or not first:
            return None
        indices = call.readable(self.reads, columns, first)
        if len(indices) == len(columns):
            return None
        if first > self.floor:
            self.floor, self._real = first, (first, call.count(first))
        return indices

    def require_crop(self, seen: int, wanted: int) -> None:
        """Raise a ValueError if a crop from ``seen`` to ``wanted`` tokens needs evicted keys, or parts a prefix."""
        if wanted < self.floor:
            raise ValueError(
                f"a cache of {seen} tokens cannot be cropped to {wanted}: it has evicted what the tokens before "
                f"{self.floor} read under '{self.mask}' ({ROLLBACK} tokens can always be taken back); start with an "
                "empty cache"
            )
        if wanted < self.marked:
            raise ValueError(
                f"a cache of {seen} tokens cannot be cropped to {wanted}: that would part a prefix of "
                f"{self.marked}, whose tokens have seen each other; start with an empty cache (a draft model for "
                "assisted decoding must be one without a prefix mask)"
            )

    def select(self, rows: Tensor) -> None:
        """Take rows of the batch."""
        if self._real is not None:
            self._real = self._real[0], _rows_of(self._real[1], rows)
        if self.prompts is not None:
            self.prompts = _rows_of(self.prompts, rows)


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows of ``[B]``, or the one that stands for all."""
    return x[rows.to(x.device)] if len(x) > 1 else x
