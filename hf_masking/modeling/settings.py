"""Which layer has which mask, and how a config remembers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ..masks import Mask

KEY = "hf_masking"  # the attribute of a config, and the key in config.json
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """The masks of a model: one for all layers, and exceptions by layer index (0-based)."""

    mask: Mask
    layers: Mapping[int, Mask] = field(default_factory=dict)
    replace_model_pattern: bool = False

    @classmethod
    def of(
        cls,
        mask: Mask | str,
        layers: Mapping[int, Mask | str] | None,
        n_layers: int,
        replace_model_pattern: bool = False,
    ) -> Settings:
        """Parses specs and counts negative layer indices from the end; raises ValueError for what does not exist."""
        resolved: dict[int, Mask] = {}
        for index, layer_mask in (layers or {}).items():
            if isinstance(index, bool) or not isinstance(index, int) or not -n_layers <= index < n_layers:
                raise ValueError(
                    f"unknown layer {index!r}: the model has {n_layers} layers; use 0 to {n_layers - 1}, "
                    "or -1 for the last"
                )
            if index % n_layers in resolved:
                raise ValueError(f"layer {index % n_layers} is given twice")
            resolved[index % n_layers] = Mask.parse(layer_mask)
        return cls(Mask.parse(mask), resolved, replace_model_pattern)

    def mask_of(self, layer: int) -> Mask:
        return self.layers.get(layer, self.mask)

    def masks(self, n_layers: int) -> list[Mask]:
        return [self.mask_of(layer) for layer in range(n_layers)]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "mask": str(self.mask),
            "layers": {str(layer): str(mask) for layer, mask in self.layers.items()},
            "replace_model_pattern": self.replace_model_pattern,
        }

    @classmethod
    def from_json(cls, data: Any, n_layers: int) -> Settings:
        if not isinstance(data, Mapping) or data.get("version") != VERSION or "mask" not in data:
            raise ValueError(f"the config's {KEY!r} entry is not one of format version {VERSION}: {data!r}")
        try:
            layers = {int(layer): mask for layer, mask in data.get("layers", {}).items()}
        except (AttributeError, ValueError):
            raise ValueError(f"the config's {KEY!r} entry names layers that are no numbers: {data!r}") from None
        return cls.of(data["mask"], layers, n_layers, bool(data.get("replace_model_pattern", False)))


def count_layers(config: PreTrainedConfig) -> int:
    return int(config.get_text_config(decoder=True).num_hidden_layers)


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
