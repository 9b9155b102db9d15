"""How a process leaves its group: the threads of gloo must have let go of their tensors before Python ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def clean_exit() -> Iterator[None]:
    """Run what a process does before it ends, then give the group's threads time, and end the group.

    A thread of gloo that has finished a collective still has to release its tensors, which takes the interpreter. One
    that asks for it while Python is ending aborts the process ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/issues/190489). Ending the group does not wait for the thread: modules of torch
    and DeepSpeed's parameters keep the group alive.
    """
    try:
        yield
    finally:
        if dist.is_initialized():
            _let_threads_finish()
    # Not after an error: NCCL would wait for processes that go on without this one.
    if dist.is_initialized():
        dist.destroy_process_group()


def _let_threads_finish() -> None:
    """Leave the interpreter to other threads for a second, which is some thousand times what they need."""
    # Nothing tells when they are done. In pieces: a whole machine that stood still would wake everyone at once.
    for _ in range(20):
        time.sleep(0.05)
