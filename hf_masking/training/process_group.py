"""Leave a process group: gloo's threads must release their tensors before Python exits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def clean_exit() -> Iterator[None]:
    """Run the last work of a process, give the group's threads time, and destroy the group.

    A gloo thread that has finished a collective still has to release its tensors, for which it needs the interpreter
    lock. A thread that asks for the lock while Python exits aborts the process ("terminate called without an active
    exception", https://github.com/pytorch/pytorch/issues/190489). Destroying the group does not wait for the thread,
    because modules of torch and DeepSpeed's parameters keep the group alive.
    """
    try:
        yield
    finally:
        if dist.is_initialized():
            _let_threads_finish()
    # Not after an error: NCCL would wait for processes that continue without this one.
    if dist.is_initialized():
        dist.destroy_process_group()


def _let_threads_finish() -> None:
    """Leave the interpreter to other threads for a second, a thousand times what they need."""
    # Nothing tells when they are done. Short sleeps: after a stall of the whole machine all threads wake at once.
    for _ in range(20):
        time.sleep(0.05)
