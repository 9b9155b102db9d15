"""The features of a running layer: what its adaptive masks compute from the hidden states of the new tokens."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adaptive import Features
from . import running
from .in_graph import ADAPTS
from .patching.layer_mask import NAME

logger = logging.getLogger("hf_masking")

_PENALTIES = "penalties"  # what `mask_penalties` observes


@torch.compiler.disable(reason=ADAPTS)
def compute(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention module: compute the features of its mask (GPT-2 passes states by position)."""
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    found = []
    # Half precision would round spans of a thousand tokens to multiples of four.
    with torch.autocast(hidden.device.type, enabled=False):
        for module in attention.get_submodule(NAME).children():
            found.append(module(hidden))
            if hasattr(module, "penalty"):
                _collect(module, hidden, found[-1])
    running.push_inner(running.current(), attention, tuple(found))


@torch.compiler.disable(reason=ADAPTS)
def discard(attention: nn.Module, *_: Any) -> None:
    """Forward hook of an attention module, which runs after an exception, too."""
    running.pop(attention)


def of_keys(features: Sequence[Features]) -> Tensor | None:
    """Return the features of keys, of all leaves side by side ``[B, G, n, s]``; None if there are none."""
    found = [one.key for one in features if one.key is not None]
    return torch.cat(found, dim=-1) if found else None


def with_keys(features: Sequence[Features], keys: Tensor) -> tuple[Features, ...]:
    """Return features with those of all keys ``[B, G, M, s]``, the cached ones included, in place of the new ones."""
    sizes = [0 if one.key is None else one.key.shape[-1] for one in features]
    parts = keys.split(sizes, dim=-1)
    return tuple(one if one.key is None else replace(one, key=part) for one, part in zip(features, parts, strict=True))


@contextmanager
def mask_penalties() -> Iterator[list[Tensor]]:
    """Collect the penalties of learned masks: a number from 0 to 1 per mask and layer, which training can reduce.

    It is the mean span as a share of the longest, or the mean weight of all pairs. Add their mean, times a factor, to
    the loss::

        with mask_penalties() as penalties:
            loss = model(**batch).loss
        (loss + 0.1 * torch.stack(penalties).mean()).backward()

    Without gradients there are none, and a warning is logged. Use gradient checkpointing with
    ``use_reentrant=False``: the reentrant one runs its first pass without gradients.
    """
    with running.observing(_PENALTIES) as penalties:
        yield penalties


def _collect(module: Any, hidden: Tensor, features: Features) -> None:
    penalties = running.observer(_PENALTIES)
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    if learns and (penalties is not None or module.training):
        # In training also without an observer: checkpointing runs the layer again, and must find the same operations.
        penalty = module.penalty(hidden, features)
        if penalties is not None:
            penalties.append(penalty)
    elif penalties is not None:
        _warn_once("its parameters are frozen" if torch.is_grad_enabled() else "gradients are off")


@functools.lru_cache
def _warn_once(reason: str) -> None:
    logger.warning(
        "mask_penalties() collects nothing of a mask that learns, because %s (reentrant checkpointing turns them off, "
        "and PEFT freezes what it does not know)",
        reason,
    )
