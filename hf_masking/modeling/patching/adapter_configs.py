"""Put the mask into the configs of PEFT's adapters, which are saved without the model around them.

PEFT writes what `to_dict` of an adapter's config returns, and warns of an entry that it does not know. So an adapter of
a patched model loads under its mask with `hf_masking.from_pretrained`, and with PEFT alone it loads with a warning.

A patched model gives its adapters their own configs, since one `LoraConfig` may serve several models. It does so when
it is patched, and before each forward and each save, since `get_peft_model` may come after the patch.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .config import KEY
from .layer_mask import NAME, is_learned
from .record import ATTRIBUTE, Patch

logger = logging.getLogger("hf_masking")

_CONFIGS = "peft_config"  # the attribute in which PEFT keeps the configs of a model's adapters, by name
_PROMPT_LEARNING = "base_model."  # the prefix under which PEFT keeps a model with learned prompts


@dataclass(frozen=True)
class _Carried:
    """The contents of an adapter's config until it is saved.

    entry: the mask, as in a config.json.
    lost: the masks whose parameters are trained and not saved by PEFT.
    once: PEFT is about to write this config, which is the user's; afterwards it is an ordinary one again.
    """

    entry: dict[str, Any]
    lost: tuple[str, ...] = ()
    once: bool = False


class _Masked:
    """A mixin for the class of an adapter's config, whose attribute `KEY` holds what it carries."""

    plain: Any

    def to_dict(self) -> dict[str, Any]:
        carried: _Carried = vars(self)[KEY]
        written: dict[str, Any] = super().to_dict() | {KEY: carried.entry}  # type: ignore[misc]
        if carried.lost:
            logger.warning(
                "this adapter is saved without what %s has learned; PEFT saves it if it is named before the adapter is "
                "made: patch_model first, then LoraConfig(..., modules_to_save=%s)",
                " and ".join(carried.lost),
                list(carried.lost),
            )
        if carried.once:
            _release(self)
        return written

    def __reduce__(self) -> tuple[Any, ...]:
        # This class is made at run time, so it cannot be imported.
        return _unpickled, (self.plain,), vars(self)


@functools.cache
def _masked(plain: Any) -> Any:
    return type(plain.__name__, (_Masked, plain), {"plain": plain, "__module__": plain.__module__})


def _unpickled(plain: Any) -> Any:
    masked = _masked(plain)
    return masked.__new__(masked)


def _mark(config: Any, carried: _Carried) -> None:
    if not isinstance(config, _Masked):
        plain: Any = type(config)
        config.__class__ = _masked(plain)
    setattr(config, KEY, carried)


def _release(config: Any) -> None:
    if isinstance(config, _Masked):
        config.__class__ = config.plain
        delattr(config, KEY)


def follow(base: nn.Module) -> list[RemovableHandle]:
    """Register hooks that find the adapters that PEFT puts into a patched model."""
    return [base.register_forward_pre_hook(_before_forward), base.register_state_dict_pre_hook(_before_saving)]


def give(model: nn.Module, patch: Patch) -> None:
    """Let the adapters in a model, and around it, be saved with its mask."""
    for module in model.modules():
        _give(getattr(module, _CONFIGS, None), patch)


def take_back(patch: Patch) -> None:
    """Let the adapters be saved without a mask again."""
    for config in [*patch.adapters, *patch.borrowed]:
        _release(config)
    patch.adapters.clear()
    patch.borrowed.clear()


def _give(configs: Any, patch: Patch, lost: tuple[str, ...] = ()) -> None:
    """Replace configs by copies that carry the mask."""
    for name, config in configs.items() if isinstance(configs, dict) else ():
        if all(config is not own for own in patch.adapters):
            configs[name] = copy.copy(config)
            patch.adapters.append(configs[name])
        _mark(configs[name], _Carried(patch.config.to_dict(), lost))


def _before_forward(base: nn.Module, args: tuple[Any, ...]) -> None:
    if not torch.compiler.is_compiling():
        _give_back(vars(base)[ATTRIBUTE])
        _give(vars(base).get(_CONFIGS), vars(base)[ATTRIBUTE])


def _give_back(patch: Patch) -> None:
    """Release configs that a failed save has marked and not written."""
    while patch.borrowed:
        _release(patch.borrowed.pop())


def _before_saving(base: nn.Module, prefix: str, keep_vars: bool) -> None:
    configs, patch = vars(base).get(_CONFIGS), vars(base)[ATTRIBUTE]
    if not isinstance(configs, dict):
        if prefix == _PROMPT_LEARNING and not patch.adapters:
            logger.warning("PEFT saves prompts without the mask of the model inside; patch_model(peft_model, mask)")
        return
    held, lost = list(configs.values()), _lost(base)
    _give_back(patch)
    _give(configs, patch, lost)
    if not _is_peft_saving():
        return
    for config, own in zip(held, configs.values(), strict=True):
        if config is not own:
            # PEFT has taken the config before it asks for the weights.
            patch.borrowed.append(config)
            _mark(config, _Carried(patch.config.to_dict(), lost, once=True))


def _is_peft_saving() -> bool:
    """Return whether this thread is inside `PeftModel.save_pretrained`: others, too, ask for a state dict."""
    frame = inspect.currentframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "save_pretrained" and module.partition(".")[0] == "peft":
            return True
        frame = frame.f_back
    return False


def _lost(base: nn.Module) -> tuple[str, ...]:
    trained = (name.split(".") for name, one in base.named_parameters() if is_learned(name) and one.requires_grad)
    return tuple(sorted({parts[parts.index(NAME) + 1] for parts in trained if "modules_to_save" not in parts}))
