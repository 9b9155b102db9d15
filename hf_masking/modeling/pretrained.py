"""Loading a model together with the mask that was saved with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from . import settings
from .learned import NAME, is_learned
from .patch import patch_model, require_checks
from .record import find_patch
from .settings import KEY, Settings

logger = logging.getLogger("hf_masking")

_WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "variant")  # how a checkpoint is found


def from_pretrained(
    path: str | PathLike[str],
    *,
    check: bool = True,
    backend: str = "auto",
    auto_class: Any = AutoModelForCausalLM,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model and patch it with the mask that its checkpoint carries.

    What a mask has learned is loaded with it; Transformers alone reports it as unexpected and drops it.

    Parameters:
        path: a folder or a hub id.
        check: as in `patch_model`.
        backend: as in `patch_model`.
        auto_class: what loads the model: AutoModelForSequenceClassification, AutoModel, a model class.
        kwargs: handed to ``auto_class.from_pretrained``.

    Raises:
        ValueError: the checkpoint carries no mask, lacks weights, or holds not exactly the parameters that its masks
            learn.
    """
    model = load(path, backend=backend, auto_class=auto_class, **kwargs)
    if find_patch(model) is None:
        raise ValueError(
            f"{path} carries no mask; load it with {auto_class.__name__}.from_pretrained and say which: "
            "patch_model(model, 'window:256|sinks:4')"
        )
    if check:
        require_checks(model)
    return model


def load(
    path: str | PathLike[str], *, backend: str = "auto", auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Load the model of a checkpoint, under the mask that it carries and with what that has learned, or without one.

    Raises:
        ValueError: weights are missing, or the entry of the mask is wrong.
    """
    if kwargs.get("output_loading_info"):
        raise ValueError("output_loading_info=True is not supported: it would return more than a model; leave it out")
    where = {name: kwargs[name] for name in _WHERE if name in kwargs}
    # Loaded without the mask first, so that this is what `unpatch_model` returns to. None: the best that the class has.
    options = {"attn_implementation": None} | kwargs | {"output_loading_info": True}
    model, report = auto_class.from_pretrained(path, **options)
    _refuse_missing(path, model, report)
    saved = _carried(path, model.config, kwargs.get("config"), where)
    settings.forget(model.config)
    if saved is None:
        return model
    masks: dict[str, Any] = {"layers": saved.layers, "replace_model_pattern": saved.replace_model_pattern}
    patch_model(model, saved.mask, check=False, backend=backend, **masks)
    _load_learned(model, path, where)
    return model


def _refuse_missing(path: str | PathLike[str], model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Raise where weights would be random, which Transformers only reports; log those that nothing uses."""
    model_class, saved_class = type(model).__name__, next(iter(model.config.architectures or ()), None)
    if missing := report["missing_keys"]:
        other = f" or auto_class=transformers.{saved_class}, which wrote this one" if saved_class != model_class else ""
        raise ValueError(
            f"{path} lacks weights of {model_class}, which would be random: {_listed(missing)}; give a whole "
            f"checkpoint{other} (to train such weights: {model_class}.from_pretrained, then patch_model)"
        )
    if unused := [key for key in report["unexpected_keys"] if not is_learned(key)]:
        logger.warning("%s holds weights that %s does not use: %s", path, model_class, _listed(unused))


def _listed(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _carried(path: str | PathLike[str], loaded: PreTrainedConfig, given: Any, where: dict[str, Any]) -> Settings | None:
    """Return the mask that a checkpoint carries: an entry of ours, and the name of our attention.

    That name makes Transformers refuse the checkpoint without this plugin. Where a model has been loaded without its
    mask and saved again, Transformers keeps the entry and drops the name: then there is no mask, whoever loads it.

    Parameters:
        loaded: the config of the loaded model, from which Transformers has taken the name.
        given: what the caller gave as ``config``.
    """
    if isinstance(given, PreTrainedConfig):
        named = vars(given).get("attn_implementation", given._attn_implementation)
    else:
        found = {name: value for name, value in where.items() if name != "variant"}
        named = PreTrainedConfig.get_config_dict(given or path, **found)[0].get("attn_implementation")
    saved = settings.read(loaded)
    if saved is None and named == KEY:
        raise ValueError(
            f"{path} has lost its mask: its config.json names attn_implementation {KEY!r} and has no {KEY!r} entry; "
            "for full attention load it with AutoModelForCausalLM and attn_implementation='sdpa'"
        )
    if saved is not None and named != KEY:
        logger.warning(
            "%s carries no mask: its model was saved while '%s' was not in force (config.json has the entry without "
            "attn_implementation %r)",
            path,
            saved.mask,
            KEY,
        )
        return None
    return saved


def _load_learned(model: nn.Module, path: str | PathLike[str], where: dict[str, Any]) -> None:
    """Loads what the masks have learned, all of it and nothing else.

    Parameters:
        where: of what `AutoModelForCausalLM.from_pretrained` was told, how to find the files.
    """
    wanted = {_place(name): parameter for name, parameter in model.named_parameters() if is_learned(name)}
    if not wanted:
        return
    saved: dict[str, Tensor] = {}
    for file in _weight_files(str(path), where):
        with safe_open(file, framework="pt") as tensors:
            saved |= {_place(name): tensors.get_tensor(name) for name in tensors.keys() if is_learned(name)}  # noqa: SIM118 (a file, not a dict)
    if wanted.keys() != saved.keys():
        missing, surplus = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
        raise ValueError(
            f"{path} does not hold what its masks have learned: missing {missing or 'nothing'}, unknown "
            f"{surplus or 'nothing'}; for masks that have learned nothing yet, load with AutoModelForCausalLM and "
            "attn_implementation='sdpa', then patch_model(model, mask)"
        )
    for place, parameter in wanted.items():
        if saved[place].shape != parameter.shape or not bool(saved[place].isfinite().all()):
            raise ValueError(
                f"{path} holds for {place} numbers of shape {list(saved[place].shape)}, and its mask needs finite ones "
                f"of shape {list(parameter.shape)}; the mask in its config.json is not the one that it was saved with"
            )
        with torch.no_grad():
            parameter.copy_(saved[place])


def _place(name: str) -> str:
    """The layer and the parameter in it: what stands before is renamed by Transformers in some models."""
    before, _, own = name.rpartition(f".{NAME}.")
    return f"layer {next(part for part in reversed(before.split('.')) if part.isdigit())}: {own}"


def _weight_files(path: str, where: dict[str, Any]) -> list[str]:
    """The files of the checkpoint that hold what masks have learned, those that Transformers reads."""
    variant = where.pop("variant", None)
    if (whole := _find(path, _with_variant(SAFE_WEIGHTS_NAME, variant), where)) is not None:
        return [whole]
    index = _find(path, _with_variant(SAFE_WEIGHTS_INDEX_NAME, variant), where)
    if index is None:
        raise ValueError(
            f"{path} holds no {_with_variant(SAFE_WEIGHTS_NAME, variant)}; what masks have learned is loaded from "
            "safetensors only: save it with save_pretrained"
        )
    shards: dict[str, str] = json.loads(Path(index).read_text())["weight_map"]
    found = {shard: _find(path, shard, where) for name, shard in sorted(shards.items()) if is_learned(name)}
    if missing := [shard for shard, file in found.items() if file is None]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which its index names")
    return [file for file in found.values() if file is not None]


def _with_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _find(path: str, name: str, where: dict[str, Any]) -> str | None:
    """A file of a folder or a hub repository; None if it has no such file."""
    if Path(path).is_dir():
        file = Path(path) / (where.get("subfolder") or "") / name
        return str(file) if file.is_file() else None
    try:
        return hf_hub_download(path, name, **where)
    except EntryNotFoundError:
        return None
