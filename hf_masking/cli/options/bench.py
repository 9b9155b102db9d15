"""Declare the options of `hf-masking bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...options import option
from .groups import DTYPES, OutputOption

README_MASKS = ["window:256", "strided:64", "log_sparse", "window:256|sinks:4", "strided:64|window:64", "causal"]


@dataclass(frozen=True)
class BenchSettings:
    """Select what is measured. The defaults take about two minutes on two cores."""

    mask: list[str] = option(
        ["window:256", "strided:64", "window:256|sinks:4"], "a mask, e.g. 'window:256|sinks:4'; repeatable"
    )
    length: list[int] = option([512, 1024, 2048, 4096], "number of tokens; repeatable")
    heads: int = option(8, "query heads")
    key_heads: int | None = option(None, "key/value heads; by default as many as query heads")
    head_size: int = option(64, "size of a head")
    batch: int = option(1, "rows of the batch")
    dtype: str = option("float32", f"one of {', '.join(DTYPES)}")
    device: str = option("cpu", "cpu or cuda")
    rounds: int = option(5, "quiet rounds, interleaved over all backends and masks; 3 or more give a spread")
    dense_up_to: int = option(8192, "the greatest length at which dense attention with a mask is measured")
    causal_up_to: int = option(16384, "the greatest length at which dense causal attention is measured")
    flex_up_to: int = option(0, "the greatest length at which compiled FlexAttention is measured; 0: never")
    memory_from: int = option(4096, "the least length at which memory is measured, in one process per mask")


# The measurements behind the table and the picture of the README, one after the other.
PRESETS: dict[str, list[BenchSettings]] = {
    "readme": [
        BenchSettings(mask=["causal", "window:64"], length=[128, 256, 512], rounds=9, dense_up_to=512),
        BenchSettings(mask=README_MASKS, length=[1024, 2048, 4096], memory_from=8192, rounds=3),
        BenchSettings(mask=README_MASKS, length=[8192], memory_from=8192, flex_up_to=8192, rounds=3),
        BenchSettings(mask=["window:512", *README_MASKS[:-1]], length=[16384], rounds=3, memory_from=131072),
        BenchSettings(mask=README_MASKS[:-1], length=[131072], rounds=3),
    ],
}


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure time and memory of attention under masks, forward and backward, against dense attention."""

    examples: ClassVar = (
        "hf-masking bench --mask window:128 --mask strided:32 --length 1024 --length 4096",
        "hf-masking bench --preset readme --output docs/bench.json",
    )

    settings: BenchSettings
    output: OutputOption
    preset: str | None = option(None, f"a list of measurements in place of these options: {', '.join(PRESETS)}")
