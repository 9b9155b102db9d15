"""The record of what is running in this thread: forwards of patched models, and layers with an adaptive mask.

The order of calls in one forward::

    hooks.enter        arguments -> Batch, the cache is adopted ── push ──┐
      mask_function    Batch -> mask slot                                 │
      each layer:                                                         │
        features.compute   hidden states -> features ── push ──┐          │
        cache.update       stores new keys, evicts old ones    │          │
        interface.attend   Documents -> masked_attention       │          │
        features.discard   ──────────────────────────── pop ───┘          │
    hooks.leave        ─────────────────────────────────────── pop ───────┘

Only layers with an adaptive mask have features. The Documents of a layer come from the mask slot; in a cached decode
step they come from the positions in the Batch, in the columns that the layer of the cache retains.

Two carriers lead from the batch to `attend`, and both are needed:

* The mask slot is a tensor that Transformers hands to every layer. It survives gradient checkpointing: there a layer
  runs again in the backward pass, when its forward has left the stack.
* The stack knows what no tensor says: the cache, which columns each of its layers retains, and the features of the
  running layer. It is a thread-local, since the layers of some models (Nemotron, OPT) drop keyword arguments that they
  do not know.

Under `sequence_parallel` the arguments of all ranks make one Batch, and `interface.attend` exchanges keys before it
attends (`sharding.py`).

Observers of a thread (`mask_penalties`, `recording`) collect from every forward in it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..adaptive import Features
from ..masks import MaskExpression
from ..plan import Documents
from .batch import Batch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Running:
    """A call that is running: of a patched model, or of an attention module whose mask is adaptive.

    features: those of the leaves of the attention's mask, of the new tokens, in order.
    frame: the one that runs the call; None for an attention module, and in a compiled graph, which has no frames.
    counts, shared: what the layers of a forward share, worked out once for the columns that they retain.
    """

    module: nn.Module
    batch: Batch
    features: tuple[Features, ...] = ()
    frame: FrameType | None = None
    counts: dict[int, Tensor] = field(default_factory=dict)
    shared: dict[Hashable, tuple[Tensor, Any]] = field(default_factory=dict)

    def count(self, columns: int) -> Tensor:
        """Return `Batch.count`, worked out once."""
        if columns not in self.counts:
            self.counts[columns] = self.batch.count(columns)
        return self.counts[columns]

    def readable(self, mask: MaskExpression, columns: Tensor, first: int) -> Tensor:
        """Return `Batch.readable`, worked out once for all layers of a mask."""
        return self._once(("readable", mask), columns, lambda: self.batch.readable(mask, columns, first))

    def documents(self, mask: MaskExpression | None, columns: Tensor) -> Documents:
        """Return `Batch.documents`: the same object for all layers of a mask, which then share a plan."""
        return self._once(("documents", mask), columns, lambda: self.batch.documents(columns))

    def _once(self, key: Hashable, columns: Tensor, make: Callable[[], T]) -> T:
        """Return what was made for the same key and columns, or make it."""
        known = self.shared.get(key)
        if known is None or known[0].device != columns.device or not torch.equal(known[0], columns):
            known = self.shared[key] = columns, make()
        found: T = known[1]
        return found


class _Here(threading.local):
    """The one thread-local: the calls that are running, each inside the one before it, and who observes them.

    The trap: a KeyboardInterrupt skips the hooks that would pop a call, and what it leaves must not pass for a call
    that is running. A call whose frame this thread does not run any more has ended, and so has everything inside it;
    of calls without a frame, no module runs inside itself or inside a part of itself.
    """

    def __init__(self) -> None:
        self.calls: list[Running] = []
        self.observers: dict[str, list[Any]] = {}
        self.sequence: Sequence | None = None


@dataclass
class Sequence:
    """The process group whose ranks hold shards of one sequence, and the number of forwards in it so far."""

    group: ProcessGroup
    forwards: int = 0


_here = _Here()


def current() -> Running | None:
    """Return the innermost call that is running in this thread."""
    _end_interrupted()
    return _here.calls[-1] if _here.calls else None


def current_batch() -> Batch | None:
    """Return the batch of the innermost call that is running in this thread."""
    running = current()
    return None if running is None else running.batch


def around(module: nn.Module) -> Running | None:
    """Return the running call that ``module`` is a part of."""
    _end_interrupted()
    _take_off({module})
    if not _here.calls:
        return None
    outer = _here.calls[-1]
    if any(module is inner for inner in outer.module.modules()):
        return outer
    _take_off(set(module.modules()))
    return None


def push(module: nn.Module, batch: Batch, frame: FrameType | None = None) -> None:
    """Note that a forward has begun."""
    _here.calls.append(Running(module, batch, frame=frame))


def push_inner(outer: Running | None, module: nn.Module, features: tuple[Features, ...], frame: Any = None) -> None:
    """Note that a module inside a running forward has begun.

    Parameters:
        outer: the forward; None where it has ended, as when gradient checkpointing runs a layer again.
    """
    if outer is None:
        _here.calls.append(Running(module, Batch(), features))
    else:
        _here.calls.append(replace(outer, module=module, features=features, frame=frame))


def pop(module: nn.Module) -> Batch | None:
    """Note that a module's call has ended, and return its batch; None for a call that failed before it was pushed."""
    if not _here.calls or _here.calls[-1].module is not module:
        return None
    return _here.calls.pop().batch


@contextmanager
def observing(what: str) -> Iterator[list[Any]]:
    """Collect what layers report under a name in this thread; an inner observer of the same name takes precedence."""
    before = _here.observers.get(what)
    found = _here.observers[what] = []
    try:
        yield found
    finally:
        if before is None:
            del _here.observers[what]
        else:
            _here.observers[what] = before


@contextmanager
def in_sequence(group: ProcessGroup) -> Iterator[Sequence]:
    """Note that the forwards of this thread are of shards, for the length of a with block."""
    before, _here.sequence = _here.sequence, Sequence(group)
    try:
        yield _here.sequence
    finally:
        _here.sequence = before


def sequence() -> Sequence | None:
    """Return the group whose ranks hold shards of the sequence that this thread runs; None for whole sequences."""
    return _here.sequence


def observer(what: str) -> list[Any] | None:
    """Return the list that collects under a name in this thread; None if nobody observes."""
    return _here.observers.get(what)


@torch.compiler.assume_constant_result
def _end_interrupted() -> None:
    """Take off the calls whose frames this thread does not run any more, and what was inside them.

    The compiler calls it while it traces, and a graph that was traced without a call does not run where there is one.
    """
    innermost = next((call.frame for call in reversed(_here.calls) if call.frame is not None), None)
    frame = inspect.currentframe()
    while frame is not None and frame is not innermost:
        frame = frame.f_back
    if frame is not None or innermost is None:
        return  # a call was pushed while those around it ran, so these still run
    running, frame = set(), inspect.currentframe()
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    calls, is_running = [], True
    for call in _here.calls:
        is_running = is_running if call.frame is None else call.frame in running
        if is_running:
            calls.append(call)
    _here.calls[:] = calls


def _take_off(modules: set[nn.Module]) -> None:
    """Take off the first call of one of these modules, and those inside it."""
    for index, call in enumerate(_here.calls):
        if call.module in modules:
            del _here.calls[index:]
            return
