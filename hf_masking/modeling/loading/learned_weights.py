"""Load the learned parameters of masks from the files of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..patching.layer_mask import NAME, is_learned


def learned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of adaptive masks, with their names in the model."""
    return ((name, parameter) for name, parameter in model.named_parameters() if is_learned(name))


def load_learned(model: nn.Module, path: str | PathLike[str], where: dict[str, Any]) -> None:
    """Load the learned parameters of a model's masks, all of them and nothing else.

    Parameters:
        where: where the files are found, as keyword arguments of `from_pretrained`.

    Raises:
        ValueError: the checkpoint holds other parameters, or values that are not finite.
    """
    wanted = {_place(name): parameter for name, parameter in learned_parameters(model)}
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


def require_learned(names: Iterable[str], saved: Iterable[str], path: str) -> None:
    """Raise a ValueError if an adapter lacks parameters of masks that it should hold."""
    if missing := sorted({_place(name) for name in names} - {_place(name) for name in saved if is_learned(name)}):
        raise ValueError(
            f"neither {path} nor its base model holds what its masks have learned: missing {missing}; for masks that "
            "have learned nothing yet, load the base model, patch_model(model, mask) and PeftModel.from_pretrained"
        )


def _place(name: str) -> str:
    """Return the layer and the parameter in it: Transformers renames the part before the layer in some models."""
    before, _, own = name.rpartition(f".{NAME}.")
    return f"layer {next(part for part in reversed(before.split('.')) if part.isdigit())}: {own}"


def _weight_files(path: str, where: dict[str, Any]) -> list[str]:
    """Return those files that Transformers reads and that hold learned parameters of masks."""
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
    """Return a file of a folder or a hub repository; None if it has no such file."""
    if Path(path).is_dir():
        file = Path(path) / (where.get("subfolder") or "") / name
        return str(file) if file.is_file() else None
    try:
        return hf_hub_download(path, name, **where)
    except EntryNotFoundError:
        return None
