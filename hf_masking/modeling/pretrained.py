"""Loading a model together with the mask that was saved with it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from . import settings
from .learned import is_learned
from .patch import patch_model, require_checks
from .record import find_patch

_FILES = "*.safetensors"
_WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder")  # how a checkpoint is found


def from_pretrained(
    path: str | PathLike[str], *, check: bool = True, backend: str = "auto", **kwargs: Any
) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, then `patch_model` with the mask that the checkpoint carries.

    What a mask has learned is loaded with it; Transformers alone reports it as unexpected and drops it.

    Parameters:
        path: a folder or a hub id.
        check: as in `patch_model`.
        backend: as in `patch_model`.
        kwargs: handed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: the checkpoint carries no mask, or not exactly the parameters that its masks learn.
    """
    model = load(path, backend=backend, **kwargs)
    if find_patch(model) is None:
        raise ValueError(
            f"{path} carries no mask; load it with AutoModelForCausalLM.from_pretrained and say which: "
            "patch_model(model, 'window:256|sinks:4')"
        )
    if check:
        require_checks(model)
    return model


def load(path: str | PathLike[str], *, backend: str = "auto", **kwargs: Any) -> PreTrainedModel:
    """The model of a checkpoint, under the mask that it carries and with what that has learned, or without one."""
    # Loaded without the mask first, so that this is what `unpatch_model` returns to.
    model = AutoModelForCausalLM.from_pretrained(path, **{"attn_implementation": "sdpa"} | kwargs)
    saved = settings.read(model.config)
    if saved is not None:
        settings.forget(model.config)
        options: dict[str, Any] = {"layers": saved.layers, "replace_model_pattern": saved.replace_model_pattern}
        patch_model(model, saved.mask, check=False, backend=backend, **options)
        _load_learned(model, path, {name: kwargs[name] for name in _WHERE if name in kwargs})
    return model


def _load_learned(model: nn.Module, path: str | PathLike[str], where: dict[str, Any]) -> None:
    """Loads what the masks have learned, all of it and nothing else.

    Parameters:
        where: of what `AutoModelForCausalLM.from_pretrained` was told, how to find the files.
    """
    wanted = {name: parameter for name, parameter in model.named_parameters() if is_learned(name)}
    if not wanted:
        return
    subfolder = where.pop("subfolder", "")
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path), allow_patterns=_FILES, **where))
    saved: dict[str, Tensor] = {}
    for file in sorted((folder / subfolder).glob(_FILES)):
        with safe_open(file, framework="pt") as tensors:
            saved |= {name: tensors.get_tensor(name) for name in tensors.keys() if is_learned(name)}  # noqa: SIM118 (a file, not a dict)
    if wanted.keys() != saved.keys():
        missing, surplus = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
        raise ValueError(
            f"{path} does not hold what its masks have learned: missing {missing or 'nothing'}, unknown "
            f"{surplus or 'nothing'}; for masks that have learned nothing yet, load with AutoModelForCausalLM and "
            "attn_implementation='sdpa', then patch_model(model)"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])
