"""Putting a mask into a model, and taking it out again without a trace."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..adaptive import AdaptiveMask
from ..attention import check_backend
from ..errors import FailedCheckError, UnsupportedModelError
from ..masks import Causal, Mask, MaskExpression
from . import features
from .base_model.architecture import own_window, positions_of, shape_of
from .base_model.own_window import OwnWindow
from .checking.model import check_model
from .forward import hooks, interface
from .forward.interface import LayerMask
from .forward.marks import Asks
from .patching import adapter_configs
from .patching import config as mask_config
from .patching.config import KEY, Settings
from .patching.record import ATTRIBUTE, Patch, find_patch, pretrained

logger = logging.getLogger("hf_masking")

Model = TypeVar("Model", bound=nn.Module)


def patch_model(
    model: Model,
    mask: MaskExpression | str | None = None,
    *,
    layers: Mapping[int, MaskExpression | str] | None = None,
    backend: str = "auto",
    replace_model_window: bool = False,
    check: bool = True,
) -> Model:
    """Makes a decoder attend under a mask, in training, evaluation, prefill and decoding.

    Parameters:
        model: a decoder whose attention goes through Transformers' attention interface. A model that is patched
            already gets the new mask.
        mask: a mask or its spec, such as ``"window:256|sinks:4"``; None re-applies the one that the config carries.
        layers: other masks for single layers, ``{0: "causal", -1: "causal"}``.
        backend: what computes attention, see `masked_attention`.
        replace_model_window: forget the window that the model has itself (Mistral, Gemma) instead of intersecting.
        check: run the checks of `check_model` on tiny random batches, and refuse the model if one fails.

    Returns:
        The same model.

    Raises:
        ValueError: a wrong spec, layer or backend.
        UnsupportedModelError: the model cannot be patched or fails a check; it is left as it was.
    """
    before, carried = find_patch(model), mask_config.read(pretrained(model).config)
    wanted = _patch(model, mask, layers, backend, replace_model_window, check)
    if carried is not None:
        _tell_what_is_lost(
            wanted, carried, mask_config.count_layers(pretrained(model).config), loaded=before is not None
        )
    return model


def unpatch_model(model: Model) -> Model:
    """Takes the mask out: configs, hooks and attributes are exactly as before `patch_model`.

    Raises:
        ValueError: the model is not patched.
    """
    if find_patch(model) is None:
        raise ValueError(f"{type(model).__name__} is not patched; there is nothing to undo")
    _undo(model)
    base = pretrained(model)
    if base.config._attn_implementation == KEY:
        # Loaded by Transformers from a patched checkpoint: without its mask it would refuse to run.
        mask_config.forget(base.config)
        _use_own_attention(base)
    return model


def _use_own_attention(base: PreTrainedModel) -> None:
    """Set the best attention that the model's class has by itself: gpt-oss, say, refuses SDPA."""
    try:
        base.set_attn_implementation("sdpa")
    except ValueError:
        base.set_attn_implementation("eager")


@contextmanager
def patched(
    model: Model,
    mask: MaskExpression | str | None = None,
    *,
    layers: Mapping[int, MaskExpression | str] | None = None,
    backend: str = "auto",
    replace_model_window: bool = False,
    check: bool = True,
) -> Iterator[Model]:
    """`patch_model` for the length of a with block; afterwards the model is as it was, its earlier mask included."""
    before = find_patch(model)
    _patch(model, mask, layers, backend, replace_model_window, check)
    try:
        yield model
    finally:
        _undo(model)
        if before is not None:
            _apply(model, pretrained(model), before.settings, before.backend, before)


def _patch(
    model: nn.Module,
    mask: MaskExpression | str | None,
    layers: Mapping[int, MaskExpression | str] | None,
    backend: str,
    replace_model_window: bool,
    check: bool,
) -> Settings:
    check_backend(backend)
    base, before = pretrained(model), find_patch(model)
    wanted = _settings(base, mask, layers, replace_model_window)
    _check_heads(wanted, base.config)
    if before is not None:
        _undo(model)
    try:
        _apply(model, base, wanted, backend, before)
        if check:
            require_checks(model)
    except BaseException:
        _undo(model)
        if before is not None:
            _apply(model, base, before.settings, before.backend, before)
        raise
    _tell(wanted, base.config)
    return wanted


def _settings(
    base: PreTrainedModel,
    mask: MaskExpression | str | None,
    layers: Mapping[int, MaskExpression | str] | None,
    replace: bool,
) -> Settings:
    if mask is not None:
        return Settings.of(mask, layers, mask_config.count_layers(base.config), replace)
    carried = mask_config.read(base.config)
    if carried is None:
        raise ValueError("the model's config carries no mask; say which: patch_model(model, 'window:256|sinks:4')")
    masks = carried.masks(mask_config.count_layers(base.config))
    if find_patch(base) is None and any(leaf.learns for mask in masks for leaf in mask.leaves):
        raise ValueError(
            f"the mask that the model's config carries, '{carried.mask}', has learned something, which was not loaded "
            "with it; load with hf_masking.from_pretrained(path), or start anew: patch_model(model, mask)"
        )
    if layers:
        raise ValueError("layers= goes with a mask: patch_model(model, 'window:256', layers={0: 'causal'})")
    return carried


def _check_heads(wanted: Settings, config: PreTrainedConfig) -> None:
    if mask_config.count_layers(config) < 1:
        raise UnsupportedModelError("the model has no layers, so there is nothing to put a mask into")
    for layer, mask in enumerate(wanted.masks(mask_config.count_layers(config))):
        n_heads = shape_of(config, layer).query_heads if len(mask.heads) > 1 else 1
        if n_heads % len(mask.heads):
            raise ValueError(
                f"{mask} gives {len(mask.heads)} groups of heads, which do not divide the model's {n_heads} query "
                "heads; give as many masks as divide them"
            )


def _apply(
    model: nn.Module, base: PreTrainedModel, wanted: Settings, backend: str, before: Patch | None = None
) -> None:
    """``before``: an earlier patch; what its masks have learned is kept where it means the same."""
    patch = Patch(wanted, backend, _own_configs(model), [], {})
    setattr(base, ATTRIBUTE, patch)
    base.set_attn_implementation(KEY)
    if base.config.get_text_config()._attn_implementation != KEY:
        raise UnsupportedModelError(f"{type(base).__name__} does not use Transformers' attention interface")
    mask_config.write(base.config, wanted)
    _attach(model, patch, {} if before is None else before.learned)
    adapter_configs.give(model, patch)
    patch.hooks += adapter_configs.follow(base)
    masks = wanted.masks(mask_config.count_layers(base.config))
    lookahead = max(mask.unmarked.union.lookahead for mask in masks)
    asks = Asks.of(masks)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and _takes_a_batch(module):
            names = tuple(_parameters(module))
            enter = functools.partial(hooks.enter, names=names, lookahead=lookahead, asks=asks)
            patch.hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            patch.hooks.append(module.register_forward_hook(hooks.leave, with_kwargs=True, always_call=True))


def _undo(model: nn.Module) -> None:
    for owner in model.modules():
        patch = vars(owner).get(ATTRIBUTE)
        if patch is None:
            continue
        for hook in patch.hooks:
            hook.remove()
        adapter_configs.take_back(patch)
        for module, config in patch.configs:
            module.config = config
        for module in owner.modules():
            interface.detach(module)
            features.detach(module)
        delattr(owner, ATTRIBUTE)


def _own_configs(model: nn.Module) -> list[tuple[nn.Module, PreTrainedConfig]]:
    """Gives the model copies of its configs (one copy for each object); returns who held which original."""
    held = [(m, vars(m)["config"]) for m in model.modules() if isinstance(vars(m).get("config"), PreTrainedConfig)]
    memo: dict[int, Any] = {}
    for module, config in held:
        module.config = copy.deepcopy(config, memo)
    return held


def _attach(model: nn.Module, patch: Patch, before: Mapping[int, Mapping[AdaptiveMask, nn.Module]]) -> None:
    wanted = patch.settings
    # Layers with one mask share one object: by it the compiler tells their graphs apart.
    layer_mask = functools.cache(lambda mask: LayerMask(mask, patch.backend, wanted.replace_model_window))
    for module in list(_decoder(model, False)):
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or interface.is_cross_attention(module):
            continue
        mask = wanted.mask_of(layer)
        interface.attach(module, layer_mask(mask))
        if mask.is_adaptive and _is_attention(module):
            shape = shape_of(pretrained(model).config, layer)
            patch.learned[layer], added = features.attach(module, mask, shape, before.get(layer, {}))
            patch.hooks += added
    for layer in range(mask_config.count_layers(pretrained(model).config)):
        if wanted.mask_of(layer).is_adaptive and layer not in patch.learned:
            raise UnsupportedModelError(
                f"no attention module was found in layer {layer} of {type(model).__name__}, where "
                f"'{wanted.mask_of(layer)}' would read the hidden states"
            )


def _decoder(module: nn.Module, inside: bool) -> Iterator[nn.Module]:
    """The modules of the decoder: not those of an image encoder beside it, whose layers count from 0 as well."""
    if isinstance(module, PreTrainedModel):
        inside = _takes_a_batch(module)
    if inside:
        yield module
    for child in module.children():
        yield from _decoder(child, inside)


def _is_attention(module: nn.Module) -> bool:
    """Whether this is a layer's attention; its decoder layer, and others in it, may know their layer, too."""
    return "Attention" in type(module).__name__


def _takes_a_batch(model: PreTrainedModel) -> bool:
    return {"attention_mask", "past_key_values"} <= set(_parameters(model))


def _parameters(model: PreTrainedModel) -> list[str]:
    """The names of what its forward takes, without self."""
    return list(inspect.signature(type(model).forward).parameters)[1:]


def require_checks(model: nn.Module) -> None:
    report = check_model(model)
    failed = [str(row) for row in report.rows if not row.passed]
    if failed:
        raise FailedCheckError(
            f"{type(model).__name__} does not keep its mask ({len(failed)} of {len(report.rows)} checks fail), so it "
            "was left unpatched",
            *failed,
        )


def _tell(wanted: Settings, config: PreTrainedConfig) -> None:
    named = wanted.masks(mask_config.count_layers(config))
    masks = [mask.unmarked.union for mask in named]
    readers = [int(mask.last_reader(torch.tensor(0, device="cpu"))) for mask in masks]
    last = max(readers)
    # Behind the positions that the model is made for it makes no difference.
    if last < positions_of(config) - 1:
        furthest = named[readers.index(last)]
        logger.warning(
            "mask %s: no query after position %d sees the first token, which pretrained models lean on; "
            "consider '%s|sinks:4'",
            furthest,
            last,
            furthest,
        )
    if any(mask.lookahead for mask in masks):
        logger.warning("mask %s looks ahead: no generation and no autoregressive perplexity under it", wanted.mask)
    if not wanted.replace_model_window:
        _tell_what_is_clipped(wanted, masks, config)


def _tell_what_is_clipped(wanted: Settings, masks: Sequence[Mask], config: PreTrainedConfig) -> None:
    """Warns where a mask reaches further back than the window that it is intersected with."""
    for layer, mask in enumerate(masks):
        window = own_window(config, layer)
        if window and mask != Causal() and OwnWindow(window).clips(mask, positions_of(config)):
            logger.warning(
                "mask %s: layers with a window of the model's own see no further back than its %d tokens, sinks, "
                "prefixes and spans included; replace_model_window=True sets it aside",
                wanted.mask_of(layer),
                window,
            )
            return


def _tell_what_is_lost(wanted: Settings, carried: Settings, n_layers: int, *, loaded: bool) -> None:
    """Says so if a mask that has learned something is replaced by one that cannot go on with it.

    Parameters:
        loaded: what has been learned is in the model; else its config alone knows of it.
    """
    for new, old in zip(wanted.masks(n_layers), carried.masks(n_layers), strict=True):
        for leaf in old.leaves:
            if leaf.learns and not (loaded and any(other.continues(leaf) for other in new.leaves)):
                how = f"'{new}' has no use for it" if loaded else "only hf_masking.from_pretrained(path) loads it"
                logger.warning("what '%s' had learned is dropped: %s", leaf, how)
                return
