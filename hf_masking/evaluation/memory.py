"""The most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Bytes: of the GPU's allocator on CUDA, else the peak resident size of the process.

    Read from the kernel's high-water mark of the address space where there is one: ``getrusage`` also counts what the
    parent held when it started this process.
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
