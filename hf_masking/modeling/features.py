"""What masks that look at the content learn: modules inside the attention layers, and what these read of the tokens."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..adaptive import AdaptiveMask, Features, LayerShape
from ..masks import MaskExpression
from . import batch
from .base_model.placement import device_of
from .in_graph import ADAPTS

logger = logging.getLogger("hf_masking")

NAME = "hf_masking"  # the submodule of an attention module, and so a part of the names of its parameters


class _Collected(threading.local):
    """The penalties that are being collected in this thread."""

    def __init__(self) -> None:
        self.penalties: list[Tensor] | None = None


_collected = _Collected()


def key_features() -> Tensor | None:
    """What has been read of the new keys ``[B, Hkv, n, s]``, of all leaves together; None for nothing."""
    read = [one.key for one in batch.features() if one.key is not None]
    return torch.cat(read, dim=-1) if read else None


def with_keys(features: Sequence[Features], keys: Tensor) -> tuple[Features, ...]:
    """The features with those of all keys ``[B, Hkv, K, s]``, the cached ones included, as `key_features` puts them."""
    sizes = [0 if one.key is None else one.key.shape[-1] for one in features]
    parts = keys.split(sizes, dim=-1)
    return tuple(one if one.key is None else replace(one, key=part) for one, part in zip(features, parts, strict=True))


@contextmanager
def mask_penalties() -> Iterator[list[Tensor]]:
    """Collects what the masks that learn would like to be small: one number from 0 to 1 for each of them and layer.

    It is the share of the longest span, or of all pairs. Add their mean, times a factor, to the loss::

        with mask_penalties() as penalties:
            loss = model(**batch).loss
        (loss + 0.1 * torch.stack(penalties).mean()).backward()

    There are none where gradients are off, which is said in the log. Gradient checkpointing must be the one with
    ``use_reentrant=False``: the other runs its first pass without gradients.
    """
    _collected.penalties, before = [], _collected.penalties
    try:
        yield _collected.penalties
    finally:
        _collected.penalties = before


def attach(
    attention: nn.Module, mask: MaskExpression, shape: LayerShape, before: Mapping[AdaptiveMask, nn.Module]
) -> tuple[dict[AdaptiveMask, nn.Module], list[RemovableHandle]]:
    """Puts the modules of a mask into an attention module.

    Parameters:
        before: modules by leaf, which go on where what they have learned means the same.

    Returns:
        The modules by leaf, and hooks to remove with them.
    """
    device = device_of(attention)
    modules: dict[AdaptiveMask, nn.Module] = {}
    for leaf in mask.leaves:
        modules[leaf] = leaf.module(shape).to(device)
        if (like := next((other for other in before if leaf.continues(other)), None)) is not None:
            # The same tensors: an optimizer may hold them.
            for name, parameter in before[like].named_parameters(recurse=False):
                setattr(modules[leaf], name, parameter)
    attention.add_module(NAME, nn.ModuleDict({leaf.name: module for leaf, module in modules.items()}))
    attention._modules[NAME].train(attention.training)  # type: ignore[union-attr]
    hooks = [
        attention.register_forward_pre_hook(_read, with_kwargs=True),
        attention.register_forward_hook(_forget, always_call=True),
    ]
    return modules, hooks


def detach(attention: nn.Module) -> None:
    if NAME in attention._modules:
        delattr(attention, NAME)


def is_learned(name: str) -> bool:
    """Whether this is the name of a parameter of a mask."""
    return NAME in name.split(".")


@torch.compiler.disable(reason=ADAPTS)
def _read(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Attention pre-hook: every leaf reads the hidden states (which GPT-2 passes by position)."""
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    inside: Any = attention._modules[NAME]
    read = []
    # Half precision would round spans of a thousand tokens to multiples of four.
    with torch.autocast(hidden.device.type, enabled=False):
        for module in inside.values():
            read.append(module(hidden))
            if hasattr(module, "penalty"):
                _collect(module, hidden, read[-1])
    batch.push(attention, batch.current(), tuple(read))


def _collect(module: Any, hidden: Tensor, features: Features) -> None:
    """The penalty of a module, for who asks for it."""
    asked = _collected.penalties is not None
    learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
    if learns and (asked or module.training):
        # In training also where nobody collects: checkpointing repeats a forward, and must find the same.
        penalty = module.penalty(hidden, features)
        if _collected.penalties is not None:
            _collected.penalties.append(penalty)
    elif asked:
        _tell_once("its parameters are frozen" if torch.is_grad_enabled() else "gradients are off")


@functools.lru_cache
def _tell_once(reason: str) -> None:
    logger.warning(
        "mask_penalties() collects nothing of a mask that learns, because %s (reentrant checkpointing turns them off, "
        "and PEFT freezes what it does not know)",
        reason,
    )


@torch.compiler.disable(reason=ADAPTS)
def _forget(attention: nn.Module, *_: Any) -> None:
    batch.pop(attention)
