"""Load the model that a command names, in the dtype and on the device that its options name."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..evaluation.loading import best_device, load_model
from .options.groups import DTYPES, LoadingOptions


def check_loading(loading: LoadingOptions) -> None:
    """Raise a ValueError for a dtype or a device that does not exist, before anything is loaded."""
    if loading.dtype is not None:
        check_dtype(loading.dtype)
    check_device(loading.device)


def load_placed(name: str, loading: LoadingOptions) -> PreTrainedModel:
    """Load a model in its dtype and on its device."""
    dtype: dict[str, Any] = {} if loading.dtype is None else {"dtype": getattr(torch, loading.dtype)}
    return load_model(name, device=loading.device or best_device(), **dtype, **loading.where())


def check_dtype(dtype: str) -> None:
    """Raise a ValueError for an unknown dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def check_device(device: str | None) -> None:
    """Raise a ValueError for a device that this machine does not have; None is any."""
    if device is None or device == "cpu":
        return
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    if int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: no such CUDA device is available; use --device cpu")
