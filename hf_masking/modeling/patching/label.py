"""Describe what runs in a patched model: its mask, other masks by layer, and the model's own windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from ...masks.marks import A_PROMPT
from ..base_model.architecture import count_layers, own_window, positions_of, pretrained
from ..base_model.own_window import OwnWindow
from .record import require_patch


def label_of(model: nn.Module) -> str:
    """Describe what runs in a patched model: ``causal; layer 0: window:8; within the model's window of 64``.

    Raises:
        ValueError: the model is not patched.
    """
    config, wanted = pretrained(model).config, require_patch(model).config
    parts = [str(wanted.mask)]
    overrides = {layer: str(mask) for layer, mask in sorted(wanted.layers.items()) if mask != wanted.mask}
    parts += [f"{name_layers(layers)}: {mask}" for mask, layers in _grouped(overrides).items()]
    n_layers = count_layers(config)
    windows = {layer: window for layer in range(n_layers) if (window := own_window(config, layer))}
    if wanted.replace_model_window:
        return "; ".join([*parts, "without the model's own window"] if windows else parts)
    clipped = {
        layer: f"within the model's window of {window}"
        for layer, window in windows.items()
        if OwnWindow(window).clips(wanted.mask_of(layer).bind(A_PROMPT).union, positions_of(config))
    }
    for text, layers in _grouped(clipped).items():
        parts.append(text if len(layers) == n_layers else f"{name_layers(layers)} {text}")
    return "; ".join(parts)


def _grouped(by_layer: dict[int, str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for layer, text in by_layer.items():
        groups.setdefault(text, []).append(layer)
    return groups


def name_layers(layers: Sequence[int]) -> str:
    """Name layers in ascending order, such as ``layers 0, 2-4``."""
    ranges = []
    for _, run in itertools.groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        members = [layer for _, layer in run]
        ranges.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(ranges)}"
