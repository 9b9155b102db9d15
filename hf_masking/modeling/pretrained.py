"""Loading a model together with the mask that was saved with it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from . import settings
from .patch import patch_model


def from_pretrained(
    path: str | PathLike[str], *, check: bool = True, backend: str = "auto", **kwargs: Any
) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, then `patch_model` with the mask that the checkpoint carries.

    Parameters:
        path: a folder or a hub id.
        check: as in `patch_model`.
        backend: as in `patch_model`.
        kwargs: handed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: the checkpoint carries no mask.
    """
    # Loaded without the mask first, so that this is what `unpatch_model` returns to.
    model = AutoModelForCausalLM.from_pretrained(path, **{"attn_implementation": "sdpa"} | kwargs)
    saved = settings.read(model.config)
    if saved is None:
        raise ValueError(
            f"{path} carries no mask; load it with AutoModelForCausalLM.from_pretrained and say which: "
            "patch_model(model, 'window:256|sinks:4')"
        )
    settings.forget(model.config)
    return patch_model(
        model,
        saved.mask,
        layers=saved.layers,
        replace_model_pattern=saved.replace_model_pattern,
        check=check,
        backend=backend,
    )
