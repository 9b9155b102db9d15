"""Groups of options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...options import option

DTYPES = ("float32", "float64", "bfloat16", "float16")


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

    backend: str | None = option(
        None, "what computes attention: auto, reference, sdpa, gathered, blockwise or flex; by default auto"
    )

    def layers(self) -> dict[int, str]:
        """Return the masks by layer; raise a ValueError for an item that is not INDEX=MASK."""
        layers: dict[int, str] = {}
        for item in self.layer:
            index, _, spec = item.partition("=")
            try:
                number = int(index)
            except ValueError:
                number = None
            if not spec.strip() or number is None:
                raise ValueError(f"--layer takes INDEX=MASK such as 0=causal, got {item!r}")
            if number in layers:
                raise ValueError(f"--layer {number} is given twice")
            layers[number] = spec
        return layers


@dataclass(frozen=True)
class MaskOrFileOptions(MaskOptions):
    """Select the masks, by spec or from a file."""

    mask_config: Path | None = option(None, "a JSON file of masks, as MaskConfig.save writes it; like one more --mask")


@dataclass(frozen=True)
class OneMaskOptions(MaskOrFileOptions):
    """Select the mask of a command that runs a single one."""

    mask: list[str] = option([], "the mask, e.g. 'window:256|sinks:4'; by default the checkpoint's own")
    mask_config: Path | None = option(None, "a JSON file of masks, as MaskConfig.save writes it; instead of --mask")


@dataclass(frozen=True)
class SourceOptions:
    """Say where a model is found on the hub, and whether its code is trusted."""

    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run the code that a model brings; read it first", "--trust-remote-code")

    def where(self) -> dict[str, Any]:
        """Return the arguments for `from_pretrained`."""
        # Never left out: Transformers would ask on the terminal.
        where: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        return where if self.revision is None else where | {"revision": self.revision}


@dataclass(frozen=True)
class LoadingOptions(SourceOptions):
    """Say how a model is loaded."""

    dtype: str | None = option(None, f"{', '.join(DTYPES)}; by default as saved")
    device: str | None = option(None, "cpu, cuda or cuda:1; by default a GPU if there is one")


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
    json: bool = option(
        False, "print the figures as JSON on standard output, and the tables on standard error", "--json"
    )

    @property
    def path(self) -> Path | None:
        """Where the figures go, None for nowhere; raise a ValueError for two places."""
        if self.json and self.output is not None:
            raise ValueError("--json prints on standard output, and --output names a file; give one of them")
        return Path("-") if self.json else self.output
