"""A memory of results that is bounded by bytes: one plan of a long text takes as much as many of short ones."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_ENTRY_BYTES = 2**12  # the Python objects of a result and of its arguments, besides their tensors


def remember(limit: int, size: Callable[[Any], int]) -> Callable[[Callable[P, T]], Memory[P, T]]:
    """Make a function remember its results: as `functools.lru_cache`, but bounded by bytes.

    Parameters:
        limit: bytes of all results together. Beyond it the least recently used are dropped; the newest stays, however
            large it is, since every layer of a model asks for the same.
        size: the bytes of a result; those of arguments that have ``nbytes`` are added.
    """
    return lambda function: Memory(function, limit, size)


class Memory(Generic[P, T]):
    """A function of hashable arguments and the results that it remembers; safe for threads."""

    def __init__(self, function: Callable[P, T], limit: int, size: Callable[[Any], int]) -> None:
        self.function, self.limit, self.size = function, limit, size
        self.nbytes = 0
        self._results: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (args, *kwargs.items())
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key][0]
        # Without the lock: two threads may work out the same, and the result of the first to finish is kept.
        result = self.function(*args, **kwargs)
        # The arguments stay alive as the key, and documents hold tensors of their own.
        nbytes = self.size(result) + sum(getattr(argument, "nbytes", 0) for argument in args) + _ENTRY_BYTES
        with self._lock:
            if key in self._results:
                return self._results[key][0]
            self._results[key] = result, nbytes
            self.nbytes += nbytes
            while self.nbytes > self.limit and len(self._results) > 1:
                self.nbytes -= self._results.popitem(last=False)[1][1]
        return result

    def __len__(self) -> int:
        return len(self._results)

    def cache_clear(self) -> None:
        """Forget every result."""
        with self._lock:
            self._results.clear()
            self.nbytes = 0
