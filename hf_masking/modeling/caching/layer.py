"""The cache layer that Transformers sees: a buffer of columns, and the rule by which it evicts them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ...adaptive import Selection
from .. import running
from ..features import of_keys
from ..in_graph import EVICTS
from ..patching.layer_mask import LayerMask
from ..running import Running
from .block_summaries import BlockSummaries
from .buffer import ColumnBuffer
from .eviction import Eviction


class MaskedLayer(DynamicLayer):
    """The retained keys and values of one layer; keys that no later query may read are evicted.

    Keys are appended in place. Where there is no room left, evicted columns are dropped first. A mask that never evicts
    retains everything, without the copy of the whole cache that Transformers' own layer makes at each step.

    Parameters:
        layer_mask: the mask of the layer.
        window: the model's own window in this layer; None for none, or if it is not known.

    Attributes:
        masked: a patched model has read its tokens.
    """

    def __init__(self, layer_mask: LayerMask, window: int | None = None) -> None:
        # Not the parent's: its keys and values are plain attributes.
        self.is_initialized = False
        self.buffer = ColumnBuffer()
        self.eviction = Eviction(layer_mask, window)
        self._summaries: BlockSummaries | None = None
        self.masked = False

    @property
    def keys(self) -> Tensor | None:
        """The retained keys ``[B, H, columns, D]``."""
        return self.buffer.get("keys")

    @property
    def values(self) -> Tensor | None:
        """The retained values ``[B, H, columns, D]``."""
        return self.buffer.get("values")

    @property
    def features(self) -> Tensor | None:
        """The features of the retained keys under an adaptive mask ``[B, H, columns, s]``; None for none."""
        return self.buffer.get("features")

    @property
    def columns(self) -> Tensor:
        """The retained columns, in ascending order; `Batch.positions` says which positions they are."""
        return self.buffer.columns

    @property
    def seen(self) -> int:
        """The number of columns that there have been."""
        return self.buffer.seen

    @property
    def held_bytes(self) -> int:
        """The bytes that the tensors take, with their room for more."""
        states = None if self._summaries is None else self._summaries.states
        return self.buffer.held_bytes + (0 if states is None else states.untyped_storage().nbytes())

    @property
    def column_bytes(self) -> int:
        """The bytes that the key and the value of one token take, in all rows."""
        return self.buffer.column_bytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @torch.compiler.disable(reason=EVICTS)
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens ``[B, H, n, D]``; return all that are retained, these included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        call = running.current()
        self._begin(call)
        states = {"keys": key_states, "values": value_states}
        if call is not None and (features := of_keys(call.features)) is not None:
            states["features"] = features
        self.buffer.append(states, live=lambda: self._live(call))
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        return keys, values

    def _live(self, call: Running | None) -> Tensor | None:
        return None if call is None else self.eviction.live(call, self.columns, self.seen)

    def _begin(self, call: Running | None) -> None:
        """Begin a call of the model, and refuse what would be silently wrong."""
        cache = None if call is None else call.batch.cache
        masked = cache is not None and any(layer is self for layer in cache.layers)
        if self.seen and masked != self.masked:
            # Also where nothing has been evicted: from the second layer on the keys are those of another function.
            raise ValueError(
                f"this cache holds {self.seen} tokens read under '{self.eviction.mask}', and the model that uses it is "
                "not patched; start with an empty cache"
                if self.masked
                else f"this cache holds {self.seen} tokens that no patched model has read; start with an empty cache"
            )
        self.masked = masked
        if call is None:
            return
        if cache is not None and self.seen != call.batch.seen:
            raise ValueError(
                f"a call that failed has left this cache half updated ({self.seen} tokens here, {call.batch.seen} "
                "in its first layer); start with an empty cache"
            )
        self.eviction.begin(call)

    def over_all_columns(self, probabilities: Tensor) -> Tensor:
        """Spread probabilities of the retained keys ``[B, H, N, k]`` over all columns, with 0 for evicted ones."""
        if len(self.columns) == self.seen:
            return probabilities
        spread = probabilities.new_zeros(*probabilities.shape[:-1], self.seen)
        return spread.index_copy(-1, self.columns, probabilities)

    def block_summaries(self, selection: Selection, call: Running) -> Tensor:
        """Return the summaries of the blocks of keys that are complete, ``[B, G, blocks, s]``."""
        if self._summaries is None or self._summaries.selection != selection:
            self._summaries = BlockSummaries(selection)
        keys = self.keys
        assert keys is not None

        def counts(tokens: int) -> list[int]:
            found = call.count(tokens).tolist()
            return found * (len(keys) // len(found))

        if not self._summaries.are_of(counts):
            # attention_mask differs from the previous call on cached tokens: the blocks are others.
            self._summaries = BlockSummaries(selection)
        return self._summaries.update(keys, call.batch.positions(self.columns), self.seen, counts(self.seen))

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, ``-n`` for n of them (a positive number is the length to retain).

        Raises:
            ValueError: this needs keys that have been evicted, or a part of a prefix.
        """
        wanted = int(tokens_to_remove)
        wanted = min(self.seen, max(0, self.seen + wanted if wanted <= 0 else wanted))
        if wanted == self.seen:
            return
        self.eviction.require_crop(self.seen, wanted)
        if not wanted:
            self.reset()
            return
        if self._summaries is not None:
            self._summaries.crop(self.seen - wanted)
        self.buffer.truncate(wanted)

    def reset(self) -> None:
        """Empty the layer; its mask stays."""
        self.__init__(self.eviction.layer_mask, self.eviction.window)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.seen:
            self._select(torch.arange(self.buffer.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        """Take rows of everything that the layer holds."""
        self.buffer.select(rows)
        self.eviction.select(rows)
        if self._summaries is not None:
            self._summaries.select(rows)

    def offload(self) -> None:
        self.buffer.to("cpu")
        self._summaries = None

    def prefetch(self) -> None:
        if self.is_initialized and self.buffer.device != self.device:
            self.buffer.to(self.device)
