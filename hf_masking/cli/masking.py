"""Choose the masks that a command runs: those that `--mask` names, or the one that the checkpoint carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..masks import MaskExpression
from ..modeling import get_mask_config, layer_masks, patch_model, sharing_weights
from ..spec import parse_mask
from .options.groups import MaskOptions


def check_specs(masks: MaskOptions) -> None:
    """Raise a ValueError for a wrong spec, before anything is loaded."""
    for spec in [*masks.mask, *masks.layers().values()]:
        parse_mask(spec)


def chosen(model: PreTrainedModel, masks: MaskOptions, default: str | None = None) -> list[str | None]:
    """Return the masks to run; None stands for the one that the model carries.

    Parameters:
        default: the mask to run if none is named and none is carried.

    Raises:
        ValueError: there is no mask, or options that go with `--mask` are given without it.
    """
    carries = bool(layer_masks(model))
    if not masks.mask and carries and (masks.layer or masks.replace_model_window):
        flag = "--layer" if masks.layer else "--replace-model-window"
        raise ValueError(f"{flag} goes with --mask; name the mask that the model carries, or another")
    if not masks.mask and not carries and default is None:
        raise ValueError("--mask is missing, and the model carries none; name one: --mask 'window:256|sinks:4'")
    return list(masks.mask) or [None if carries else default]


def put_into(model: PreTrainedModel, spec: str | None, masks: MaskOptions, *, check: bool = True) -> PreTrainedModel:
    """Patch the model with a mask, or with None check the mask that it carries; return the model."""
    layers = None if spec is None else masks.layers()
    return patch_model(model, spec, layers=layers, replace_model_window=masks.replace_model_window, check=check)


def most_lookahead(model: PreTrainedModel) -> tuple[MaskExpression, int]:
    """Return the mask of a patched model with the greatest lookahead while no tokens are marked, and that lookahead."""
    worst = max(layer_masks(model), key=lambda mask: mask.unmarked.union.lookahead)
    return worst, worst.unmarked.union.lookahead


def copies(model: PreTrainedModel, specs: Sequence[str | None]) -> list[tuple[PreTrainedModel, str | None]]:
    """Return a model for each mask, all with one set of weights."""
    # A single mask needs no copy.
    return [(model if len(specs) == 1 else sharing_weights(model), spec) for spec in specs]


def what_runs(model: PreTrainedModel) -> dict[str, Any]:
    """Return the masks of a patched model as run.json stores them."""
    config = get_mask_config(model)
    assert config is not None
    runs = config.to_dict()
    del runs["version"]
    return runs
