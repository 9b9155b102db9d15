"""Run a function in a new process, so that its peak memory and its caches are its own."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar

from transformers.utils.logging import disable_progress_bar

from ..interrupts import ignored

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function of a module in a new process and return its result, or raise its exception.

    What the plugin logs there is logged here; what is printed there goes to standard error. The new process ignores
    Ctrl-C; it ends when this one is interrupted or exits.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    listener = Thread(target=_log, args=(receiver,), daemon=True)
    listener.start()
    others = active_children()
    try:
        with ProcessPoolExecutor(1, context, initializer=_begin, initargs=(sender,)) as pool, _ended(others):
            with ignored():  # inherited by the new process, which then prints no traceback
                future = pool.submit(function, *arguments)
            # The new process has its own copy; once this one is closed, its exit ends the pipe.
            sender.close()
            return future.result()
    finally:
        sender.close()
        listener.join()
        receiver.close()


@contextmanager
def _ended(others: list[BaseProcess]) -> Iterator[None]:
    """End the new process at an error or an interruption, when the pool would wait for it."""
    try:
        yield
    except BaseException:
        for child in active_children():
            if child not in others:
                child.kill()
        raise


class _Sender(logging.Handler):
    """Send records through a pipe: unlike a queue, it leaves no lock behind if the process is killed."""

    def __init__(self, sender: Connection) -> None:
        super().__init__()
        self.sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        # The arguments of a message may not be picklable.
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.sender.send(record)


def _begin(sender: Connection) -> None:
    # Standard output may be a JSON report of the parent's, and DeepSpeed's logger writes to it.
    with suppress(OSError):  # standard error is closed
        os.dup2(2, 1)
    disable_progress_bar()
    logger = logging.getLogger("hf_masking")
    logger.addHandler(_Sender(sender))
    logger.propagate = False
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _log(receiver: Connection) -> None:
    while True:
        try:
            record = receiver.recv()
        except (EOFError, OSError):
            return
        logging.getLogger(record.name).handle(record)
