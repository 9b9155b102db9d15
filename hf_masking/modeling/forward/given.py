"""Check what callers give for each row or for each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_ids(name: str, ids: Tensor, rows: int, tokens: int) -> None:
    """Raise a ValueError unless ``ids`` are integers, one for each token of each row, or of one row for all."""
    if ids.is_floating_point() or ids.shape not in {(rows, tokens), (1, tokens)}:
        got = f"{ids.dtype} of shape {list(ids.shape)}"
        raise ValueError(f"{name} must be integers of shape [{rows}, {tokens}], got {got}")


def as_lengths(name: str, lengths: Any, rows: int, device: torch.device) -> Tensor:
    """Return ``lengths`` as a tensor ``[B]``; raise a ValueError unless they are one integer for each row."""
    lengths = torch.as_tensor(lengths, device=device)
    if lengths.is_floating_point() or lengths.shape != (rows,):
        raise ValueError(f"{name} must be {rows} integers, one per row, got {lengths.tolist()}")
    return lengths


def repeated(given: Any, rows: int) -> Tensor:
    """Return what a cache was given for each prompt ``[P, ...]`` for ``rows`` rows.

    `generate` repeats each prompt for beams and return sequences.
    """
    given = torch.as_tensor(given)
    return given.repeat_interleave(max(1, rows // max(1, len(given))), dim=0)
