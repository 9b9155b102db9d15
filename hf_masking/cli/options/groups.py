"""Groups of options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...options import option


@dataclass(frozen=True)
class MaskOptions:
    """Select the masks."""

    mask: list[str] = option([], "a mask, e.g. 'window:256|sinks:4'; repeatable; by default the checkpoint's own")
    layer: list[str] = option([], "another mask for one layer, e.g. 0=causal or -1=causal; repeatable")
    replace_model_window: bool = option(
        False,
        "ignore the model's own sliding window (Mistral, Gemma) instead of intersecting the mask with it",
        "--replace-model-window",
    )

    def layers(self) -> dict[int, str]:
        """Return the masks by layer; raise a ValueError for an item that is not INDEX=MASK."""
        layers: dict[int, str] = {}
        for item in self.layer:
            index, equals, spec = item.partition("=")
            try:
                number = int(index)
            except ValueError:
                number = None
            if not equals or number is None:
                raise ValueError(f"--layer takes INDEX=MASK such as 0=causal, got {item!r}")
            if number in layers:
                raise ValueError(f"--layer {number} is given twice")
            layers[number] = spec
        return layers


@dataclass(frozen=True)
class OneMaskOptions(MaskOptions):
    """Select the mask of a command that runs a single one."""

    mask: list[str] = option([], "the mask, e.g. 'window:256|sinks:4'; by default the checkpoint's own")


@dataclass(frozen=True)
class DataOptions:
    """Select the text."""

    data: str = option(
        "stdlib",
        "a text file, a folder, - (standard input), a hub data set NAME[:CONFIG], or 'stdlib': Python's own library",
    )
    split: str = option("test", "the split of a hub data set")
    column: str = option("text", "the column of a hub data set")


@dataclass(frozen=True)
class OutputOption:
    """Select where the figures go."""

    output: Path | None = option(None, "write the figures to this JSON file; - for standard output")
