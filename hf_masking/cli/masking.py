"""Choose the masks that a command runs: those that `--mask` names, or the one that the checkpoint carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..attention import check_backend
from ..evaluation import refuse_lookahead
from ..masks import MaskExpression
from ..modeling import MaskConfig, get_mask_config, layer_masks, patch_model, sharing_weights
from ..spec import parse_mask
from .options.groups import MaskOptions, MaskOrFileOptions, OneMaskOptions

Chosen = str | MaskConfig | None  # None is the mask that the model carries


def check_specs(masks: MaskOptions) -> None:
    """Raise a ValueError for a wrong spec, before anything is loaded."""
    for spec in [*masks.mask, *masks.layers().values()]:
        parse_mask(spec)
    if masks.backend is not None:
        check_backend(masks.backend)


def check_one_mask(masks: OneMaskOptions, command: str) -> None:
    """Raise a ValueError if the options name several masks, before anything is loaded."""
    named = len(masks.mask) + (masks.mask_config is not None)
    if named > 1:
        remedy = "join masks with '|' or '&'" if masks.mask_config is None else "leave --mask or --mask-config out"
        raise ValueError(f"{command} takes one mask, got {named}; {remedy}")


def chosen(model: PreTrainedModel, masks: MaskOrFileOptions, default: str | None = None) -> list[Chosen]:
    """Return the masks to run.

    Parameters:
        default: the mask to run if none is named and none is carried.

    Raises:
        ValueError: there is no mask, or options that go with `--mask` are given without it.
    """
    carries = bool(layer_masks(model))
    named: list[Chosen] = [*masks.mask, *([] if masks.mask_config is None else [MaskConfig.load(masks.mask_config)])]
    if masks.mask_config is not None and (masks.layer or masks.replace_model_window):
        raise ValueError(f"{_beside_mask(masks)} goes with --mask; --mask-config has its own")
    if not named and carries and (masks.layer or masks.replace_model_window):
        raise ValueError(f"{_beside_mask(masks)} goes with --mask; name the mask that the model carries, or another")
    if not named and not carries and default is None:
        raise ValueError("--mask is missing, and the model carries none; name one: --mask 'window:256|sinks:4'")
    return named or [None if carries else default]


def put_into(model: PreTrainedModel, mask: Chosen, masks: MaskOptions, *, check: bool = True) -> PreTrainedModel:
    """Patch the model with a mask, or with None check the mask that it carries; return the model."""
    if not isinstance(mask, str):
        return patch_model(model, mask, backend=masks.backend, check=check)
    return patch_model(
        model,
        mask,
        layers=masks.layers(),
        backend=masks.backend,
        replace_model_window=masks.replace_model_window,
        check=check,
    )


def under_masks(loaded: PreTrainedModel, masks: MaskOrFileOptions, purpose: str) -> list[PreTrainedModel]:
    """Return the model under each mask, all with one set of weights; raise at once for a mask that cannot run.

    Parameters:
        purpose: what is measured under them, as messages call it.
    """
    specs = chosen(loaded, masks, default="causal")
    models = [put_into(copy, spec, masks) for copy, spec in copies(loaded, specs)]
    for model in models:
        refuse_lookahead(model, purpose)
    return models


def most_lookahead(model: PreTrainedModel) -> tuple[MaskExpression, int]:
    """Return the mask of a patched model with the greatest lookahead while no tokens are marked, and that lookahead."""
    worst = max(layer_masks(model), key=lambda mask: mask.unmarked.union.lookahead)
    return worst, worst.unmarked.union.lookahead


def copies(model: PreTrainedModel, specs: Sequence[Chosen]) -> list[tuple[PreTrainedModel, Chosen]]:
    """Return a model for each mask, all with one set of weights."""
    # A single mask needs no copy.
    return [(model if len(specs) == 1 else sharing_weights(model), spec) for spec in specs]


def what_runs(model: PreTrainedModel) -> dict[str, Any]:
    """Return the masks of a patched model as reports and run.json store them."""
    config = get_mask_config(model)
    assert config is not None
    runs = config.to_dict()
    del runs["version"]
    return runs


def _beside_mask(masks: MaskOptions) -> str:
    return "--layer" if masks.layer else "--replace-model-window"
