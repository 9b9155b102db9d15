"""Cache layers that keep the keys which the mask lets some later query read.

A mask says of each key the last position that reads it, so what may be dropped is a theorem and not a policy. Keys
are appended in place; where there is no room left, those that nobody can read any more are dropped first. A mask that
never forgets keeps everything, without the copy of the whole cache that Transformers' own makes at each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    QuantizedCache,
)

from ...adaptive import TopBlocks
from ...masks import MaskExpression
from .. import running
from ..features import key_features
from ..in_graph import EVICTS, refuse_if
from ..running import Running
from .block_summaries import BlockSummaries
from .record import record_of

# So many last tokens can be taken back (assisted decoding does), whatever has been dropped.
ROLLBACK = 64
_ORDINARY = (DynamicLayer, DynamicSlidingWindowLayer)


class MaskedLayer(DynamicLayer):
    """The keys and values of one layer: those in ``columns``, of the ``seen`` columns that there have been.

    features: what a mask that looks at the content has read of the keys ``[B, H, columns, s]``; None for nothing.
    mask: that of the layer, which a cache keeps to; None until its attention has run.
    reads: what later queries read under it; None retains every key, as until it is known, and under a backend that
        computes neighbouring keys only.
    masked: whether its tokens were read by a patched model, of whose cache this is a layer.
    floor: cropped to fewer tokens than this, the cache would lack keys that it has dropped.
    marked: cropped to fewer, it would lack tokens of a prefix or a span that the others of it have seen.
    """

    # The tensors behind `keys`, `values` and `features`, which have room for more columns.
    _keys: Any
    _values: Any
    _features: Any

    def __init__(self) -> None:
        self.columns = torch.arange(0)
        super().__init__()
        self._features = None
        self._summaries: BlockSummaries | None = None
        self.mask: MaskExpression | None = None
        self.reads: MaskExpression | None = None
        self.seen = self.floor = self.marked = 0
        self.masked = False
        # At the last drop: a number of columns, and how many of them held real tokens, by row.
        self._real: tuple[int, Tensor] | None = None

    @property
    def keys(self) -> Tensor | None:
        return None if self._keys is None else self._keys[:, :, : len(self.columns)]

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> Tensor | None:
        return None if self._values is None else self._values[:, :, : len(self.columns)]

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._values = values

    @property
    def features(self) -> Tensor | None:
        return None if self._features is None else self._features[:, :, : len(self.columns)]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.columns = self.columns.to(self.device)
        self.is_initialized = True

    @torch.compiler.disable(reason=EVICTS)
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new tokens ``[B, H, n, D]``; returns all that are kept, these included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        call, kept, new = running.current(), len(self.columns), key_states.shape[2]
        self._check(call)
        states = {"_keys": key_states, "_values": value_states}
        if (read := key_features()) is not None:
            self._features = read[:, :, :0] if self._features is None else self._features
            states["_features"] = read
        if torch.is_grad_enabled():
            # Written in place, earlier steps could not be differentiated.
            kept = self._make_room(call, 0)
            for name, state in states.items():
                setattr(self, name, torch.cat([getattr(self, name)[:, :, :kept], state], dim=2))
        else:
            # What was made in inference mode may not be written to outside of it.
            closed = self._keys.is_inference() and not torch.is_inference_mode_enabled()
            if closed or kept + new > self._keys.shape[2]:
                kept = self._make_room(call, new)
            for name, state in states.items():
                getattr(self, name)[:, :, kept : kept + new] = state
        self.columns = torch.cat([self.columns, torch.arange(self.seen, self.seen + new, device=self.device)])
        self.seen += new
        if call is not None:
            self.marked = max(self.marked, call.batch.marked)
        return self._keys[:, :, : kept + new], self._values[:, :, : kept + new]

    def _make_room(self, call: Running | None, new: int) -> int:
        """Drops what nobody reads and moves the rest to where ``new`` columns fit behind it; returns how many are left.

        Spare room is a share of what is kept, so that a column is moved a bounded number of times for each new one.
        """
        live = self._live(call)
        kept = len(self.columns) if live is None else len(live)
        spare = kept // 4 if live is None else max(1, kept // 128)
        for name, states in self._states().items():
            moved = states.new_empty(*states.shape[:2], kept + new + spare, states.shape[3])
            moved[:, :, :kept] = states[:, :, :kept] if live is None else states.index_select(2, live)
            setattr(self, name, moved)
        if live is not None:
            self.columns = self.columns[live]
        return kept

    def _states(self) -> dict[str, Tensor]:
        states = {name: getattr(self, name) for name in ("_keys", "_values", "_features")}
        return {name: state for name, state in states.items() if state is not None}

    def _live(self, call: Running | None) -> Tensor | None:
        """The indices of the columns that some query can still read, the last `ROLLBACK` taken back; None for all."""
        first = max(0, self.seen - ROLLBACK)
        if call is None or call.batch.packed or self.reads is None or not first:
            return None
        indices = call.readable(self.reads, self.columns, first)
        if len(indices) == len(self.columns):
            return None
        if first > self.floor:
            self.floor, self._real = first, (first, call.count(first))
        return indices

    def _check(self, call: Running | None) -> None:
        """Refuses to go on where that would be silently wrong."""
        cache = None if call is None else call.batch.cache
        masked = cache is not None and any(layer is self for layer in cache.layers)
        if self.seen and masked != self.masked:
            # Also where nothing has been dropped: from the second layer on the keys are those of another function.
            raise ValueError(
                f"this cache holds {self.seen} tokens read under '{self.mask}', and the model that uses it is not "
                "patched; start with an empty cache"
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
        if self._real is None:
            return
        count = call.count(self._real[0])
        if not bool((count == self._real[1].to(count.device)).all()):
            raise ValueError(
                "attention_mask says something else of the cached tokens than before, and keys have been dropped by "
                "what it said; pass the mask of all tokens, the cached ones included, in every call"
            )

    def bind(self, mask: MaskExpression, reads: MaskExpression | None) -> None:
        """Set what later queries read; None retains every key."""
        if (self.mask, self.reads) not in ((None, None), (mask, reads)):
            raise ValueError(
                f"this cache was filled under '{self.mask}', and the layer's mask is '{mask}' now (or it has learned "
                "since, or another backend runs); start with an empty cache"
            )
        self.mask, self.reads = mask, reads

    def over_all_columns(self, probabilities: Tensor) -> Tensor:
        """Spread those of the retained keys ``[B, H, Q, k]`` over all that there have been, 0 for evicted ones."""
        if len(self.columns) == self.seen:
            return probabilities
        spread = probabilities.new_zeros(*probabilities.shape[:-1], self.seen)
        return spread.index_copy(-1, self.columns, probabilities)

    def block_summaries(self, leaf: TopBlocks, call: Running) -> Tensor:
        """The summaries of the blocks of keys that are complete, ``[B, Hkv, blocks, s]``."""
        if self._summaries is None or self._summaries.leaf != leaf:
            self._summaries = BlockSummaries(leaf)
        keys = self.keys
        assert keys is not None

        def counts(tokens: int) -> list[int]:
            found = call.count(tokens).tolist()
            return found * (len(keys) // len(found))

        if not self._summaries.are_of(counts):
            # attention_mask says something else of the cached tokens than before: the blocks are others.
            self._summaries = BlockSummaries(leaf)
        return self._summaries.update(keys, call.batch.positions(self.columns), self.seen, counts(self.seen))

    @property
    def held_bytes(self) -> int:
        """What the tensors take, with the room that they have for more."""
        held = [*self._states().values()]
        if self._summaries is not None and self._summaries.states is not None:
            held.append(self._summaries.states)
        return sum(x.untyped_storage().nbytes() for x in held)

    @property
    def column_bytes(self) -> int:
        """What the key and the value of one token take, in all rows."""
        return sum(x[:, :, :1].numel() * x.element_size() for x in self._states().values())

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last tokens, ``-n`` for n of them (a positive number is the length to keep).

        Raises:
            ValueError: what is asked for needs keys that have been dropped, or a part of a prefix.
        """
        wanted = int(tokens_to_remove)
        wanted = min(self.seen, max(0, self.seen + wanted if wanted <= 0 else wanted))
        if wanted == self.seen:
            return
        if wanted < self.floor:
            raise ValueError(
                f"a cache of {self.seen} tokens cannot be cropped to {wanted}: it has dropped what the tokens before "
                f"{self.floor} read under '{self.mask}' ({ROLLBACK} tokens can always be taken back); start with an "
                "empty cache"
            )
        if wanted < self.marked:
            raise ValueError(
                f"a cache of {self.seen} tokens cannot be cropped to {wanted}: that would part a prefix of "
                f"{self.marked}, whose tokens have seen each other; start with an empty cache (a draft model for "
                "assisted decoding must be one without a prefix mask)"
            )
        if not wanted:
            self.reset()
        else:
            if self._summaries is not None:
                self._summaries.crop(self.seen - wanted)
            self.columns, self.seen = self.columns[: int((self.columns < wanted).sum())], wanted

    def reset(self) -> None:
        MaskedLayer.__init__(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.is_initialized:
            rows = self._keys.shape[0] // repeats
            self._select(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        """Takes rows of what is beside keys and values, whose rows have been taken."""
        if (features := self.features) is not None:
            self._features = features.index_select(0, rows.to(self.device))
        if self._summaries is not None:
            self._summaries.select(rows)
        if self._real is not None and len(self._real[1]) > 1:
            self._real = self._real[0], self._real[1][rows.to(self._real[1].device)]

    def offload(self) -> None:
        super().offload()
        if self._features is not None:
            self._features = self._features.to("cpu", non_blocking=True)
        self._summaries = None

    def prefetch(self) -> None:
        super().prefetch()
        if self._features is not None:
            self._features = self._features.to(self.device, non_blocking=True)


def adopt(cache: Cache, content: bool = False) -> bool:
    """Makes the layers of an empty cache `MaskedLayer`s where all are ordinary; whether they all are.

    Parameters:
        content: a mask of the model is adaptive, and its features are to be kept beside the keys.

    Raises:
        ValueError: the cache changes its keys, or was filled by a model that is not patched.
    """
    if isinstance(cache, QuantizedCache):
        raise ValueError("a quantized cache changes the keys, so what it gives is not exact; use the default cache")
    if not isinstance(cache, DynamicCache):
        _refuse_foreign(cache)
        record_of(cache).filled = True
        return False
    if cache.get_seq_length():
        _refuse_foreign(cache)
    elif torch.compiler.is_compiling() and not content:
        # What is evicted depends on the values of tensors, which a compiled graph does not know.
        _replace(cache, (DynamicSlidingWindowLayer,), DynamicLayer)
    elif all(type(layer) in (*_ORDINARY, MaskedLayer) for layer in cache.layers):
        _replace(cache, _ORDINARY, MaskedLayer)
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = MaskedLayer
    else:
        # Layers with a recurrent state beside: these stay as they are.
        _replace(cache, (DynamicSlidingWindowLayer,), DynamicLayer)
    record_of(cache).filled = True
    layers = [*map(type, cache.layers), cache.layer_class_to_replicate or MaskedLayer]
    return all(layer is MaskedLayer for layer in layers)


def _refuse_foreign(cache: Cache) -> None:
    if not record_of(cache).filled:
        seen = torch.as_tensor(cache.get_seq_length())  # a static cache counts its tokens on the device
        count = "" if torch.compiler.is_compiling() else f"{int(seen)} "
        refuse_if(
            seen > 0,
            f"this cache holds {count}tokens that no patched model has read (it is of the model without its mask, or "
            "of prefix tuning); start with an empty cache",
        )


def self_attention_cache(cache: Cache | None) -> Cache | None:
    """Return the part of a cache that holds a decoder's own keys, which is all of it but where encoders have some."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _replace(cache: Cache, old: tuple[type, ...], new: type) -> None:
    cache.layers[:] = [new() if type(layer) in old else layer for layer in cache.layers]


def new_cache(config: PreTrainedConfig, content: bool) -> DynamicCache | None:
    """A cache for a model that would make one itself; None where its layers are of another kind."""
    cache = DynamicCache(config=config)
    return cache if adopt(cache, content) else None


def layer_of(cache: Cache | None, module: nn.Module) -> MaskedLayer | None:
    """The cache layer of an attention module, if it is one of ours."""
    index = getattr(module, "layer_idx", None)
    if cache is None or not isinstance(index, int) or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    return layer if isinstance(layer, MaskedLayer) else None
