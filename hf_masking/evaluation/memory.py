"""Read the peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Return the peak in bytes: of the GPU's allocator on CUDA, else of the process's resident memory.

    Where the kernel has a high-water mark of the address space, that is read: ``getrusage`` also counts what the
    parent process held at the start.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    # Kilobytes everywhere but on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
