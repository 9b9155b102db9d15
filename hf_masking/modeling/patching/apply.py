"""Putting masks into a model, and taking them out again without a trace."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...adaptive import Weighting
from ...errors import UnsupportedModelError
from ..base_model.architecture import count_layers, pretrained, shape_of
from ..base_model.sharing import sharing_weights
from ..forward import hooks, mask_function  # noqa: F401 (registers the mask function)
from ..forward.marks import Needs
from . import adapter_configs
from .config import KEY, SAVED_ATTENTION, MaskConfig, carry_changes, forget, write
from .layer_mask import LayerMask, attach, detach, is_attention, is_cross_attention
from .parameters import add_modules
from .record import ATTRIBUTE, Patch

Model = TypeVar("Model", bound=nn.Module)


def apply(model: nn.Module, wanted: MaskConfig, before: Patch | None = None) -> None:
    """Patch a model that is not patched; if this raises, `undo` restores it.

    Parameters:
        wanted: the masks, with layers counted from 0.
        before: an earlier patch, whose learned parameters are kept where they mean the same.
    """
    base = pretrained(model)
    patch = Patch(wanted, _replace_configs(model), [], {})
    setattr(base, ATTRIBUTE, patch)
    base.set_attn_implementation(KEY)
    if base.config.get_text_config()._attn_implementation != KEY:
        raise UnsupportedModelError(f"{type(base).__name__} does not use Transformers' attention interface")
    write(base.config, wanted)
    _attach(model, patch, {} if before is None else before.learned)
    adapter_configs.give(model, patch)
    patch.hooks += adapter_configs.follow(base)
    masks = wanted.masks(count_layers(base.config))
    needs = Needs.of(masks)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and _takes_a_batch(module):
            names = tuple(_parameters(module))
            enter = functools.partial(hooks.enter, names=names, needs=needs)
            patch.hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            patch.hooks.append(module.register_forward_hook(hooks.leave, with_kwargs=True, always_call=True))


def undo(model: nn.Module) -> None:
    """Remove every patch in a model: configs, but for what has changed since, hooks and attributes are as before."""
    for owner in model.modules():
        patch = vars(owner).get(ATTRIBUTE)
        if patch is None:
            continue
        for hook in patch.hooks:
            hook.remove()
        adapter_configs.take_back(patch)
        for module, held in patch.configs:
            carry_changes(module.config, held)
            module.config = held
        for module in list(owner.modules()):
            if (held := detach(module)) is not None and module.layer_idx in patch.learned:
                # Not as they were attached: PEFT, for one, wraps them.
                modules = patch.learned[module.layer_idx]
                modules |= {
                    one: held.get_submodule(one.name) for one in modules if one.name in dict(held.named_children())
                }
        delattr(owner, ATTRIBUTE)


def unpatch(model: nn.Module) -> None:
    """Undo the patch of a model, and set an attention that runs without a mask."""
    undo(model)
    base = pretrained(model)
    if base.config._attn_implementation in (KEY, SAVED_ATTENTION):
        # Transformers loaded it from a patched checkpoint: under our attention it would refuse to run.
        forget(base.config)
        _use_own_attention(base)


def unpatched_copy(model: Model) -> Model:
    """Return a copy of a patched model without its mask, which shares its weights."""
    found = sharing_weights(model)
    unpatch(found)
    return found


def reapply(model: nn.Module, before: Patch | None) -> None:
    """Undo the patch of a model, and apply an earlier one again, if there was one."""
    undo(model)
    if before is not None:
        apply(model, before.config, before)


def _use_own_attention(base: PreTrainedModel) -> None:
    """Set the fastest attention that the model's class has itself: gpt-oss, for one, refuses SDPA."""
    try:
        base.set_attn_implementation("sdpa")
    except ValueError:
        base.set_attn_implementation("eager")


def _replace_configs(model: nn.Module) -> list[tuple[nn.Module, PreTrainedConfig]]:
    """Give the model copies of its configs, one copy for each object; return each module with its original."""
    held = [(m, vars(m)["config"]) for m in model.modules() if isinstance(vars(m).get("config"), PreTrainedConfig)]
    memo: dict[int, Any] = {}
    for module, original in held:
        module.config = copy.deepcopy(original, memo)
    return held


def _attach(model: nn.Module, patch: Patch, before: Mapping[int, Mapping[Weighting, nn.Module]]) -> None:
    wanted, base_config = patch.config, pretrained(model).config
    # Layers with one mask share one object: by it the compiler tells their graphs apart.
    layer_mask = functools.cache(lambda mask: LayerMask(mask, wanted.backend, wanted.replace_model_window))
    for module, layer in _layer_modules(model):
        mask = wanted.mask_of(layer)
        attach(module, layer_mask(mask))
        if mask.weightings and is_attention(module):
            shape = shape_of(base_config, layer)
            patch.learned[layer], added = add_modules(module, mask, shape, before.get(layer, {}))
            patch.hooks += added
    for layer in range(count_layers(base_config)):
        if wanted.mask_of(layer).weightings and layer not in patch.learned:
            raise UnsupportedModelError(
                f"no attention module was found in layer {layer} of {type(model).__name__}, where "
                f"'{wanted.mask_of(layer)}' would read the hidden states"
            )


def _layer_modules(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Return the modules of the decoder that attend, with their layers.

    Decoder layers and others in them may know their layer as well: where one is named attention, it is that one. Of two
    that are nested, as in DBRX, it is the inner one.
    """
    found: dict[int, list[nn.Module]] = {}
    for module in _decoder(model, False):
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and not is_cross_attention(module):
            found.setdefault(layer, []).append(module)
    return [
        (module, layer)
        for layer, modules in found.items()
        for module in (_innermost([one for one in modules if is_attention(one)]) or modules)
    ]


def _innermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Return the modules that contain none of the others."""
    return [one for one in modules if not any(part in modules for part in one.modules() if part is not one)]


def _decoder(module: nn.Module, inside: bool) -> Iterator[nn.Module]:
    """Yield the modules of the decoder, not those of an image encoder beside it, whose layers count from 0 as well."""
    if isinstance(module, PreTrainedModel):
        inside = _takes_a_batch(module)
    if inside:
        yield module
    for child in module.children():
        yield from _decoder(child, inside)


def _takes_a_batch(model: PreTrainedModel) -> bool:
    return {"attention_mask", "past_key_values"} <= set(_parameters(model))


def _parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters of its forward, without self."""
    return list(inspect.signature(type(model).forward).parameters)[1:]
