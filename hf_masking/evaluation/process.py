"""A process of its own, so that peak memory and caches are its own too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from transformers.utils.logging import disable_progress_bar

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Runs a function of a module in a new process and returns its result, or raises its exception."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=disable_progress_bar) as pool:
        return pool.submit(function, *arguments).result()
