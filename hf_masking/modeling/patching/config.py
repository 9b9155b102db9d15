"""`MaskConfig`: what a patch is, as a value, as JSON and as the entry of a model's config."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...attention import check_backend
from ...files import read_json, written_aside
from ...masks import MaskExpression
from ...spec import MAX_LENGTH, parse_mask
from ..base_model.architecture import count_layers

KEY = "hf_masking"  # the attribute of a model's config, the key in config.json, and the name of our attention
# The name of our attention in config.json. Transformers quotes it where it is unknown, so it is the call that loads.
SAVED_ATTENTION = "hf_masking.from_pretrained"
VERSION = 1
_FIELDS = ("version", "mask", "layers", "replace_model_window", "backend")
_ENTRY = f"the config's {KEY!r} entry"


@dataclass(frozen=True, init=False)
class MaskConfig:
    """The masks of a model: one for all layers, others for single layers, and how they are computed.

    Parameters:
        mask: a mask or its spec.
        layers: other masks or specs by layer index; -1 is the last layer.
        replace_model_window: set the model's own sliding window aside, instead of intersecting the masks with it.
        backend: which implementation computes attention, see `masked_attention`.

    Raises:
        ValueError: a wrong spec, layer index or backend.
    """

    mask: MaskExpression
    layers: Mapping[int, MaskExpression]
    replace_model_window: bool
    backend: str

    def __init__(
        self,
        mask: MaskExpression | str,
        layers: Mapping[int, MaskExpression | str] | None = None,
        replace_model_window: bool = False,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        for index in layers or ():
            if isinstance(index, bool) or not isinstance(index, int):
                raise ValueError(f"unknown layer {index!r}: expected an integer such as 0, or -1 for the last")
        found = {index: parse_mask(layer_mask) for index, layer_mask in (layers or {}).items()}
        values = {"mask": parse_mask(mask), "layers": found}
        values |= {"replace_model_window": replace_model_window, "backend": backend}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def resolved(self, n_layers: int) -> MaskConfig:
        """Return the config with negative layer indices counted from the end of a model with so many layers.

        Raises:
            ValueError: the model lacks a layer, or a layer is given twice.
        """
        found: dict[int, MaskExpression] = {}
        for index, mask in self.layers.items():
            if not -n_layers <= index < n_layers:
                raise ValueError(
                    f"unknown layer {index!r}: the model has {n_layers} layers; use 0 to {n_layers - 1}, "
                    "or -1 for the last"
                )
            if index % n_layers in found:
                raise ValueError(f"layer {index % n_layers} is given twice")
            found[index % n_layers] = mask
        return replace(self, layers=found)

    def mask_of(self, layer: int) -> MaskExpression:
        """Return the mask of a layer, counted from 0."""
        return self.layers.get(layer, self.mask)

    def masks(self, n_layers: int) -> list[MaskExpression]:
        """Return the masks of all layers."""
        return [self.mask_of(layer) for layer in range(n_layers)]

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON values; raises a ValueError for a mask that `from_dict` would refuse."""
        values = {
            "version": VERSION,
            "mask": _saved(self.mask),
            "layers": {str(layer): _saved(mask) for layer, mask in self.layers.items()},
            "replace_model_window": self.replace_model_window,
        }
        return values if self.backend == "auto" else values | {"backend": self.backend}

    @classmethod
    def from_dict(cls, data: Any) -> MaskConfig:
        """Return the config that `to_dict` wrote.

        Raises:
            ValueError: a field is unknown, missing or wrong; the message names it.
        """
        return _parse(data, "the mask config", None)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the config to a JSON file."""
        with written_aside(Path(path)) as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> MaskConfig:
        """Return the config in a JSON file.

        Raises:
            ValueError: the file is damaged, or a field is unknown, missing or wrong; the message names both.
        """
        data = read_json(Path(path), "write it with MaskConfig(mask).save(path)")
        return _parse(data, str(path), None)


def write(config: PreTrainedConfig, mask_config: MaskConfig) -> None:
    """Put masks into a model's config, with a second entry that lets loading without this plugin raise an error."""
    setattr(config, KEY, mask_config.to_dict())
    config.attn_implementation = SAVED_ATTENTION


def read(config: PreTrainedConfig) -> MaskConfig | None:
    """Return the masks in a model's config, None if there are none."""
    data = getattr(config, KEY, None)
    return None if data is None else read_entry(data, count_layers(config))


def read_entry(data: Any, n_layers: int) -> MaskConfig:
    """Return the masks in the entry of a config.json; raises a ValueError that names what is wrong in it."""
    return _parse(data, _ENTRY, n_layers)


def carry_changes(patched: PreTrainedConfig, original: PreTrainedConfig) -> None:
    """Copy into the original config what has changed since the patch, such as the size of a resized vocabulary."""
    for name, value in vars(patched).items():
        is_ours = name in (KEY, "attn_implementation", "_attn_implementation_internal")
        if not is_ours and not isinstance(value, PreTrainedConfig) and vars(original).get(name) != value:
            setattr(original, name, value)


def forget(config: PreTrainedConfig) -> None:
    """Remove the masks from a model's config."""
    for name in (KEY, "attn_implementation"):
        if name in vars(config):
            delattr(config, name)


@dataclass(frozen=True)
class _Wrong:
    """Makes the errors about one source of JSON: a file, a dict, or the entry of a config.json."""

    source: str

    def __call__(self, field_name: str, expected: str, got: Any) -> ValueError:
        return ValueError(f"{self.source} is wrong in {field_name}: expected {expected}, got {reprlib.repr(got)}")

    def spec(self, field_name: str, spec: Any) -> MaskExpression:
        """Return the mask of a spec in a field."""
        if not isinstance(spec, str):
            raise self(field_name, "a spec such as 'window:256|sinks:4'", spec)
        try:
            return parse_mask(spec)
        except ValueError as error:
            raise ValueError(f"{self.source} is wrong in {field_name}: {error}") from None

    def layer(self, name: Any, n_layers: int | None) -> int:
        """Return the layer that a key names: a layer has one name, so that no two keys are the same."""
        digits = isinstance(name, str) and re.fullmatch("0|[1-9][0-9]{0,5}", name.removeprefix("-"))
        if n_layers is None and digits and name != "-0":
            return int(name)
        if n_layers is None:
            raise self("'layers'", 'layers such as "0" or "-1", in plain digits', name)
        if not digits or not 0 <= int(name) < n_layers or name.startswith("-"):
            raise self("'layers'", f'layers "0" to "{n_layers - 1}", in plain digits', name)
        return int(name)


def _parse(data: Any, source: str, n_layers: int | None) -> MaskConfig:
    """Parse JSON values that anybody may have written.

    Parameters:
        source: where they come from, as messages call it.
        n_layers: the number of layers of the model that they belong to, if that is known.
    """
    wrong = _Wrong(source)
    if not isinstance(data, Mapping):
        raise wrong("the entry itself", "an object", data)
    if unknown := [name for name in data if name not in _FIELDS]:
        raise wrong("its fields", f"none but {', '.join(_FIELDS)}", unknown)
    if missing := [name for name in ("version", "mask") if name not in data]:
        raise wrong("its fields", " and ".join(missing), list(data))
    # An exact type: True equals 1 in Python, and so does 1.0.
    if type(data["version"]) is not int or data["version"] != VERSION:
        raise wrong("'version'", f"format version {VERSION} (a newer hf_masking may know it)", data["version"])
    replaces, layers = data.get("replace_model_window", False), data.get("layers", {})
    if not isinstance(replaces, bool):
        raise wrong("'replace_model_window'", "true or false", replaces)
    if not isinstance(layers, Mapping):
        raise wrong("'layers'", 'an object such as {"0": "causal"}', layers)
    masks: dict[int, MaskExpression | str] = {
        wrong.layer(name, n_layers): wrong.spec(f"'layers', layer {name}", spec) for name, spec in layers.items()
    }
    mask, backend = wrong.spec("'mask'", data["mask"]), data.get("backend")
    if backend is not None and not isinstance(backend, str):
        raise wrong("'backend'", "the name of a backend", backend)
    try:
        return MaskConfig(mask, masks, replaces, "auto" if backend is None else backend)
    except ValueError as error:  # an unknown backend
        raise ValueError(f"{source} is wrong in 'backend': {error}") from None


def _saved(mask: MaskExpression) -> str:
    spec = str(mask)
    if len(spec) > MAX_LENGTH:
        raise ValueError(
            f"a mask of {len(spec):,} characters cannot be saved with a model, whose config.json takes {MAX_LENGTH:,}: "
            f"{reprlib.repr(spec)}; use a shorter one ('spans' with span_ids= marks any number of spans)"
        )
    return spec
