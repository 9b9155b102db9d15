"""A process of its own, so that peak memory and caches are its own too."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from transformers.utils.logging import disable_progress_bar

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Runs a function of a module in a new process and returns its result, or raises its exception.

    What the plugin logs there is logged here: who listens hears each message in one place.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    listener = threading.Thread(target=_log, args=(receiver,), daemon=True)
    listener.start()
    try:
        with ProcessPoolExecutor(1, context, initializer=_begin, initargs=(sender,)) as pool:
            future = pool.submit(function, *arguments)
            # The process has its own copy by now; with that alone, its end is the end of what is heard.
            sender.close()
            return future.result()
    finally:
        sender.close()
        listener.join()
        receiver.close()


class _Sender(logging.Handler):
    """Sends records through a pipe: unlike a queue it leaves no lock behind if the process is killed meanwhile."""

    def __init__(self, sender: Connection) -> None:
        super().__init__()
        self.sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        # Not everything that a message is made of can be pickled.
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.sender.send(record)


def _begin(sender: Connection) -> None:
    disable_progress_bar()
    logger = logging.getLogger("hf_masking")
    logger.addHandler(_Sender(sender))
    logger.propagate = False


def _log(receiver: Connection) -> None:
    while True:
        try:
            record = receiver.recv()
        except (EOFError, OSError):
            return
        logging.getLogger(record.name).handle(record)
