"""Explain in one sentence why a model cannot run under a mask."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ..patching.apply import unpatched_copy
from .readout import Readout

_TORCH, _PLUGIN = Path(torch.__file__).parent, Path(__file__).parents[2]


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn any exception of a model's forward under a mask into an `UnsupportedModelError` of one sentence.

    Parameters:
        name: the name of the model's class.
    """
    try:
        yield
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # some models compute with the mask slot, or need inputs that the checks do not give
        raise UnsupportedModelError(f"{name} does not run under a mask: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return one line: what was raised and where, or the message alone if this package raised it."""
    message = next(iter(str(error).splitlines()), "")
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _TORCH not in Path(frame.filename).parents
    ]
    where = frames[-1]
    if isinstance(error, ValueError) and _PLUGIN in Path(where.filename).parents:
        return message
    said = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno} ({where.line})"
    return f"{said}: {message}" if message else said


def refuse_not_finite(model: nn.Module, tokens: Tensor) -> None:
    """Raise an `UnsupportedModelError` for weights or buffers that are NaN or infinite, or a model that overflows.

    Parameters:
        tokens: ``[B, N]``, for which the model under its mask computes what is not finite.
    """
    read = Readout(unpatched_copy(model))
    for name, weights in model.named_parameters():
        if weights.is_floating_point() and not weights.is_meta and not bool(weights.isfinite().all()):
            raise UnsupportedModelError(f"the weights of {read.name} are not finite: {name}")
    # Before the model runs: whether NaN in a buffer reaches the output depends on the processor. -inf may be a mask.
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and not bool((buffer < math.inf).all()):
            raise UnsupportedModelError(
                f"{name} of {read.name} is not finite, although no checkpoint holds it; correct the config that it "
                "is computed from"
            )
    if not bool(read(tokens).isfinite().all()):
        dtype = next(weights.dtype for weights in model.parameters() if weights.is_floating_point())
        raise UnsupportedModelError(
            f"what {read.name} computes in {dtype} is not finite, with a mask or without, although its weights are; "
            "load it in a dtype of a wider range"
        )


def influences(model: nn.Module, tokens: Tensor, other: int) -> bool:
    """Return whether a token influences later ones in a model without its mask.

    Not so where output projections start at zero, as in training from scratch.

    Parameters:
        tokens: ``[1, N]``, whose first token is replaced.
        other: the token that replaces it.
    """
    read = Readout(unpatched_copy(model))
    changed = torch.cat([tokens.new_tensor([[other]]), tokens[:, 1:]], dim=1)
    return not torch.equal(read(tokens)[:, 1:], read(changed)[:, 1:])
