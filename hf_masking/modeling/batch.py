"""What the forward that is running says of its tokens, where the functions that Transformers calls can find it.

Transformers tells a mask function neither the position ids nor the document ids, so the hooks on every (sub)model
leave what the batch says on a stack of the thread.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..adaptive import Features
from ..masks import MaskExpression
from ..plan import Documents
from ..plan.documents import PADDING, ids_from_padding, positions_in_documents
from .in_graph import EVICTS, refuse_if

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a forward says of its tokens, the cached ones first.

    seen, new: how many columns are cached, and how many come with this forward.
    ids: the document of each token ``[B, N]``, PADDING for none; None where every token is in document 0.
    packed: a row may hold several documents; None where nothing was read of the forward.
    spans: the marked span of each token ``[B, N]``, negative for none; None where nobody said.
    cache: the cache, if its layers are `MaskedLayer`s, which know the columns that they keep.
    attentions: the caller wants the attention probabilities.
    for_loss: the names of arguments that the loss of the model reads, and no model inside it.

    B is 1 where all rows are alike.
    """

    seen: int = 0
    new: int = 0
    ids: Tensor | None = None
    packed: bool | None = None
    spans: Tensor | None = None
    cache: Cache | None = None
    attentions: bool = False
    for_loss: frozenset[str] = frozenset()
    _counts: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _readable: dict[MaskExpression, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _kept: dict[MaskExpression, tuple[Tensor, Documents]] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def marked(self) -> int:
        """How many columns there are up to the last one of a marked span."""
        columns = None if self.spans is None else (self.spans >= 0).any(0).nonzero()
        return 0 if columns is None or not len(columns) else int(columns[-1]) + 1

    def count(self, columns: int) -> Tensor:
        """The number of real tokens in the first columns, for each row (or one for all) ``[B]``."""
        if columns not in self._counts:
            counts = None if self.ids is None else (self.ids[:, :columns] >= 0).sum(-1)
            self._counts[columns] = torch.tensor([columns]) if counts is None else counts
        return self._counts[columns]

    def positions(self, columns: Tensor) -> Tensor:
        """The position of the tokens in these columns ``[k]``, for each row (or one for all) ``[B, k]``."""
        return columns[None] if self._positions is None else _in_columns(self._positions, columns)

    def kept(self, mask: MaskExpression, columns: Tensor) -> Documents:
        """`describe`, but the same object for all layers of a mask, so that what follows from it is worked out once."""
        return _once(self._kept, mask, columns, lambda: self.describe(columns))

    def readable(self, mask: MaskExpression, columns: Tensor, first: int) -> Tensor:
        """The indices of those columns ``[k]`` that some token in a column from ``first`` on may read."""

        def find() -> Tensor:
            positions, next_query = self.positions(columns), self.count(first).to(columns.device)[:, None]
            # What is marked was marked in full when it came: no later query reads more of it.
            live = (positions >= 0) & (mask.unmarked.union.last_reader(positions) >= next_query)
            return live.any(0).nonzero()[:, 0]

        return _once(self._readable, mask, columns, find)

    def describe(self, columns: Tensor) -> Documents:
        """The new tokens as queries, the tokens in these columns ``[k]`` as keys."""
        new = torch.arange(self.seen, self.seen + self.new, device=columns.device)
        positions = [self.positions(where).int() for where in (new, columns)]
        if self.ids is None:
            ids = [torch.zeros_like(where) for where in positions]
        else:
            ids = [_in_columns(self.ids, where).int() for where in (new, columns)]
        spans = None if self.spans is None else _in_columns(self.spans, columns)
        scattered = len(columns) > 0 and int(columns[-1] - columns[0]) != len(columns) - 1
        return Documents(positions[0], ids[0], positions[1], ids[1], spans, scattered)

    @functools.cached_property
    def _positions(self) -> Tensor | None:
        if self.ids is None:
            return None
        if self.packed:
            return positions_in_documents(self.ids)
        real = self.ids >= 0
        return torch.where(real, real.cumsum(-1) - 1, PADDING)


def _in_columns(x: Tensor, columns: Tensor) -> Tensor:
    """``x[:, columns]`` where the columns are: the layers of a model may be on several devices."""
    return x[:, columns.to(x.device)].to(columns.device)


def _once(
    memo: dict[MaskExpression, tuple[Tensor, T]], mask: MaskExpression, columns: Tensor, make: Callable[[], T]
) -> T:
    """What the layers of a mask share, made once for the columns that they keep."""
    known = memo.get(mask)
    if known is None or known[0].device != columns.device or not torch.equal(known[0], columns):
        known = memo[mask] = columns, make()
    return known[1]


class Running(NamedTuple):
    """A call that is under way: of a patched model, or of an attention module whose mask has features.

    features: those of the leaves of the attention's mask, of the new tokens.
    frame: the one that runs the call; None for an attention, and in a compiled graph, where frames are not known.
    """

    module: nn.Module
    batch: Batch | None
    features: tuple[Features, ...] = ()
    frame: FrameType | None = None


class _Stack(threading.local):
    """The calls that are under way in this thread, each inside of the one before it.

    The trap: a KeyboardInterrupt goes past the hooks that would take a call off again, and what it leaves must not pass
    for a call that is under way. A call whose frame this thread does not run any more has ended, and so has what was
    inside of it; of calls without a frame, no module runs inside itself or inside a part of itself.
    """

    def __init__(self) -> None:
        self.calls: list[Running] = []


_stack = _Stack()


def current() -> Batch | None:
    """The batch of the innermost patched forward that is running in this thread."""
    _end_interrupted()
    return _stack.calls[-1].batch if _stack.calls else None


def features() -> tuple[Features, ...]:
    """What the leaves of the running layer's mask have read of the new tokens, in order; empty if it reads nothing."""
    _end_interrupted()
    return _stack.calls[-1].features if _stack.calls else ()


def around(module: nn.Module) -> Batch | None:
    """The batch of the running forward that ``module`` is a part of."""
    _end_interrupted()
    _take_off({module})
    if not _stack.calls:
        return None
    outer = _stack.calls[-1]
    if any(module is inner for inner in outer.module.modules()):
        return outer.batch
    _take_off(set(module.modules()))
    return None


@torch.compiler.assume_constant_result
def _end_interrupted() -> None:
    """Take off the calls whose frames this thread does not run any more, and what was inside of them.

    The compiler calls it while it traces, and a graph that was traced without a call does not run where there is one.
    """
    if not _stack.calls:
        return
    running, frame = set(), inspect.currentframe()
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    calls, is_running = [], True
    for call in _stack.calls:
        is_running = is_running if call.frame is None else call.frame in running
        if is_running:
            calls.append(call)
    _stack.calls[:] = calls


def _take_off(modules: set[nn.Module]) -> None:
    """Takes off the first call of one of these modules, and those inside of it."""
    for index, call in enumerate(_stack.calls):
        if call.module in modules:
            del _stack.calls[index:]
            return


def push(
    module: nn.Module, batch: Batch | None, features: tuple[Features, ...] = (), frame: FrameType | None = None
) -> None:
    _stack.calls.append(Running(module, batch, features, frame))


def pop(module: nn.Module) -> Batch | None:
    """The module's batch; None for a call that failed before it had one, which left nothing to undo."""
    if not _stack.calls or _stack.calls[-1].module is not module:
        return None
    return _stack.calls.pop().batch


def documents(
    attention_mask: Tensor | None, q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int, device: Any
) -> Documents:
    """Documents for the sizes that Transformers asks a mask for, from the running batch or else from its 2D mask."""
    batch = current() or Batch()
    if batch.cache is not None and batch.seen:
        # Its layers keep different keys, and know which.
        return batch.describe(torch.arange(0, device=device))
    ids = batch.ids
    if ids is None and attention_mask is not None and batch.packed is None:
        ids = ids_from_padding(attention_mask)
    query_columns = torch.arange(q_length, device=device) + q_offset
    columns = torch.arange(kv_offset + kv_length, device=device)
    if ids is None:
        ids = torch.zeros(1, len(columns), dtype=torch.int32, device=device)
    ids = _fitted(ids.to(device), len(columns))
    spans = None if batch.spans is None else _fitted(batch.spans.to(device), len(columns))
    # A static cache has columns behind the last query that hold nothing yet.
    ids = torch.where(columns >= q_offset + q_length, PADDING, ids)
    whole = Documents.from_ids(ids, query_columns, spans)
    if kv_offset == 0:
        return whole
    _refuse_lost_keys(whole.key_positions >= 0, kv_offset, q_offset + q_length)
    return whole.of_keys(columns[kv_offset:])


# In a graph the number of cached tokens would be a constant, and every step of decoding another graph.
documents_outside = torch.compiler.disable(documents, reason=EVICTS)


def _fitted(x: Tensor, length: int) -> Tensor:
    return nn.functional.pad(x[:, :length], (0, length - min(length, x.shape[1])), value=PADDING)


def _refuse_lost_keys(real: Tensor, kv_offset: int, seen: int | Tensor) -> None:
    """A static sliding cache keeps the last columns; with a hole among them a window by positions reaches further."""
    columns = torch.arange(real.shape[1], device=real.device)
    hole = (~real & (columns >= kv_offset) & (columns < seen)).any(-1)
    refuse_if(
        (hole & real[:, :kv_offset].any(-1)).any(),
        "attention_mask has a hole inside the window of a static cache, which has dropped keys that are needed; use "
        "the default cache",
    )
