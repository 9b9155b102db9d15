"""Which layer has which mask, and how a config remembers it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ...masks import MaskExpression
from ...spec import MAX_LENGTH, parse_mask
from ..base_model.architecture import count_layers

KEY = "hf_masking"  # the attribute of a config, and the key in config.json
VERSION = 1
_FIELDS = ("version", "mask", "layers", "replace_model_window")


@dataclass(frozen=True)
class Settings:
    """The masks of a model: one for all layers, and exceptions by layer index (0-based)."""

    mask: MaskExpression
    layers: Mapping[int, MaskExpression] = field(default_factory=dict)
    replace_model_window: bool = False

    @classmethod
    def of(
        cls,
        mask: MaskExpression | str,
        layers: Mapping[int, MaskExpression | str] | None,
        n_layers: int,
        replace_model_window: bool = False,
    ) -> Settings:
        """Parses specs and counts negative layer indices from the end; raises ValueError for what does not exist."""
        resolved: dict[int, MaskExpression] = {}
        for index, layer_mask in (layers or {}).items():
            if isinstance(index, bool) or not isinstance(index, int) or not -n_layers <= index < n_layers:
                raise ValueError(
                    f"unknown layer {index!r}: the model has {n_layers} layers; use 0 to {n_layers - 1}, "
                    "or -1 for the last"
                )
            if index % n_layers in resolved:
                raise ValueError(f"layer {index % n_layers} is given twice")
            resolved[index % n_layers] = parse_mask(layer_mask)
        return cls(parse_mask(mask), resolved, replace_model_window)

    def mask_of(self, layer: int) -> MaskExpression:
        return self.layers.get(layer, self.mask)

    def masks(self, n_layers: int) -> list[MaskExpression]:
        return [self.mask_of(layer) for layer in range(n_layers)]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a config.json; raises ValueError for a mask that `from_json` would refuse."""
        return {
            "version": VERSION,
            "mask": _saved(self.mask),
            "layers": {str(layer): _saved(mask) for layer, mask in self.layers.items()},
            "replace_model_window": self.replace_model_window,
        }

    @classmethod
    def from_json(cls, data: Any, n_layers: int) -> Settings:
        """Read the entry of a config.json, which anybody may have written.

        Raises:
            ValueError: a field is unknown, missing or wrong; the message names it.
        """
        if not isinstance(data, Mapping):
            raise _wrong("the entry itself", "an object", data)
        if unknown := [name for name in data if name not in _FIELDS]:
            raise _wrong("its fields", f"none but {', '.join(_FIELDS)}", unknown)
        if missing := [name for name in ("version", "mask") if name not in data]:
            raise _wrong("its fields", " and ".join(missing), list(data))
        # An exact type: True equals 1 in Python, and 1.0 does, too.
        if type(data["version"]) is not int or data["version"] != VERSION:
            raise _wrong("'version'", f"format version {VERSION} (a newer hf_masking may know it)", data["version"])
        replace, layers = data.get("replace_model_window", False), data.get("layers", {})
        if not isinstance(replace, bool):
            raise _wrong("'replace_model_window'", "true or false", replace)
        if not isinstance(layers, Mapping):
            raise _wrong("'layers'", 'an object such as {"0": "causal"}', layers)
        masks = {_index(name, n_layers): _spec(f"'layers', layer {name}", spec) for name, spec in layers.items()}
        return cls(_spec("'mask'", data["mask"]), masks, replace)


def _saved(mask: MaskExpression) -> str:
    spec = str(mask)
    if len(spec) > MAX_LENGTH:
        raise ValueError(
            f"a mask of {len(spec):,} characters cannot be saved with a model, whose config.json takes {MAX_LENGTH:,}: "
            f"{reprlib.repr(spec)}; use a shorter one ('spans' with span_ids= marks any number of spans)"
        )
    return spec


def _index(name: Any, n_layers: int) -> int:
    """The layer that a key names: one layer has one name, so that no two keys are the same."""
    index = int(name) if isinstance(name, str) and re.fullmatch("0|[1-9][0-9]{0,5}", name) else n_layers
    if index >= n_layers:
        raise _wrong("'layers'", f'layers "0" to "{n_layers - 1}", in plain digits', name)
    return index


def _spec(field_name: str, spec: Any) -> MaskExpression:
    if not isinstance(spec, str):
        raise _wrong(field_name, "a spec such as 'window:256|sinks:4'", spec)
    try:
        return parse_mask(spec)
    except ValueError as error:
        raise ValueError(f"the config's {KEY!r} entry is wrong in {field_name}: {error}") from None


def _wrong(field_name: str, expected: str, got: Any) -> ValueError:
    return ValueError(
        f"the config's {KEY!r} entry is wrong in {field_name}: expected {expected}, got {reprlib.repr(got)}"
    )


def write(config: PreTrainedConfig, settings: Settings) -> None:
    """Makes the config remember the masks; the second entry makes loading without this plugin fail, not forget."""
    setattr(config, KEY, settings.to_json())
    config.attn_implementation = KEY


def read(config: PreTrainedConfig) -> Settings | None:
    data = getattr(config, KEY, None)
    return None if data is None else Settings.from_json(data, count_layers(config))


def forget(config: PreTrainedConfig) -> None:
    for name in (KEY, "attn_implementation"):
        if name in vars(config):
            delattr(config, name)
