"""Warn in the log when `patch_model` sets masks that lose something."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from ..masks import Causal, Mask
from ..masks.marks import A_PROMPT
from .base_model.architecture import count_layers, own_window, positions_of
from .base_model.own_window import OwnWindow
from .patching.config import MaskConfig

logger = logging.getLogger("hf_masking")


def warn_of_limits(wanted: MaskConfig, config: PreTrainedConfig) -> None:
    """Warn of masks that lose the first token, look ahead, or are clipped by the model's own window."""
    named = wanted.masks(count_layers(config))
    masks = [mask.bind(A_PROMPT).union for mask in named]
    readers = [int(mask.last_reader(torch.tensor(0, device="cpu"))) for mask in masks]
    last = max(readers)
    # Past the positions that the model was made for it makes no difference.
    if last < positions_of(config) - 1:
        furthest = named[readers.index(last)]
        logger.warning(
            "mask %s: no query after position %d sees the first token, which pretrained models rely on; "
            "consider '%s|sinks:4'",
            furthest,
            last,
            furthest,
        )
    if any(mask.lookahead for mask in masks):
        logger.warning("mask %s looks ahead: no generation and no autoregressive perplexity under it", wanted.mask)
    if not wanted.replace_model_window:
        _warn_of_clipping(wanted, masks, config)


def _warn_of_clipping(wanted: MaskConfig, masks: Sequence[Mask], config: PreTrainedConfig) -> None:
    """Warn, once, if a mask reaches further back than the window that it is intersected with."""
    for layer, mask in enumerate(masks):
        window = own_window(config, layer)
        if window and mask != Causal() and OwnWindow(window).clips(mask, positions_of(config)):
            logger.warning(
                "mask %s: layers with a window of the model's own see no further back than its %d tokens, sinks, "
                "prompts, prefixes and spans included; replace_model_window=True sets it aside",
                wanted.mask_of(layer),
                window,
            )
            return


def warn_of_dropped_parameters(wanted: MaskConfig, carried: MaskConfig, n_layers: int, *, loaded: bool) -> None:
    """Warn if learned parameters of a mask are dropped, because the new mask cannot reuse them.

    Parameters:
        carried: the masks that the model, or its config, had before.
        loaded: the model holds the parameters; otherwise only its config knows of them.
    """
    for new, old in zip(wanted.masks(n_layers), carried.masks(n_layers), strict=True):
        for weighting in old.weightings:
            if not (loaded and any(other.continues(weighting) for other in new.weightings)):
                how = f"'{new}' cannot reuse it" if loaded else "only hf_masking.from_pretrained(path) loads it"
                logger.warning("what '%s' had learned is dropped: %s", weighting, how)
                return
