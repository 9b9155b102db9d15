"""Run `hf-masking info CHECKPOINT`: which masks does a checkpoint carry?"""

from __future__ import annotations

import json
from typing import Any

from ..evaluation.loading import read_config
from ..modeling import shape_of
from ..modeling.base_model.architecture import count_layers, own_window
from ..modeling.patching.label import name_layers
from .options.info import InfoOptions
from .terminal import console


def run(options: InfoOptions) -> None:
    """Print the masks of a checkpoint, and the sliding window that the model has itself."""
    found = _found(options)
    if options.json:
        console.print(json.dumps(found, indent=2), soft_wrap=True)
        return
    shape = f"{found['model_type']}, {found['n_layers']} layers, {found['query_heads']} query heads"
    lines = {"checkpoint": found["checkpoint"], "adapter of": found["base"], "model": shape}
    masks = found["masks"]
    if masks is None:
        lines["masks"] = "none; patch_model(model, 'window:256|sinks:4') or --mask puts one into the model"
    else:
        lines["mask"] = masks["mask"]
        lines |= {f"  layer {layer}": mask for layer, mask in masks["layers"].items()}
        lines["backend"] = masks.get("backend", "auto")
    windows = [f"{window:,} tokens in {name_layers(layers)}" for window, layers in _grouped(found["windows"]).items()]
    lines["own window"] = "; ".join(windows) or "none"
    if windows and masks is not None:
        lines["own window"] += "; set aside" if masks["replace_model_window"] else "; the masks are clipped by it"
    for name, value in lines.items():
        if value is not None:
            console.print(f"{name:<12}{value}", soft_wrap=True)


def _found(options: InfoOptions) -> dict[str, Any]:
    checkpoint = read_config(options.checkpoint, **options.source.where())
    config, n_layers = checkpoint.config, count_layers(checkpoint.config)
    if n_layers < 0:
        raise ValueError(
            f"{options.checkpoint}: the model has {n_layers} layers; correct num_hidden_layers in its config.json"
        )
    try:
        query_heads = shape_of(config).query_heads
    except AttributeError:
        raise ValueError(
            f"{options.checkpoint}: a {config.model_type} model has no attention heads, so no mask can be put into it"
        ) from None
    return {
        "checkpoint": options.checkpoint,
        "base": checkpoint.base,
        "model_type": config.model_type,
        "n_layers": n_layers,
        "query_heads": query_heads,
        "windows": [own_window(config, layer) for layer in range(n_layers)],
        "masks": None if checkpoint.masks is None else checkpoint.masks.to_dict(),
    }


def _grouped(windows: list[int | None]) -> dict[int, list[int]]:
    """Return the layers of each window."""
    layers: dict[int, list[int]] = {}
    for layer, window in enumerate(windows):
        if window is not None:
            layers.setdefault(window, []).append(layer)
    return layers
