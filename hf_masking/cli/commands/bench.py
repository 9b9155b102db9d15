"""`hf-masking bench`: attention alone, masks against what one would run without them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from ..options import OutputOption

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. The defaults take about two minutes on two cores."""

    mask: list[str] = field(
        default_factory=lambda: ["window:256", "strided:64", "window:256|sinks:4"],
        metadata={"help": "a mask, e.g. 'window:256|sinks:4'; repeatable"},
    )
    length: list[int] = field(
        default_factory=lambda: [512, 1024, 2048, 4096],
        metadata={"help": "number of tokens; repeatable"},
    )
    heads: int = field(default=8, metadata={"help": "query heads"})
    key_heads: int | None = field(default=None, metadata={"help": "key heads; by default as many"})
    head_size: int = field(default=64, metadata={"help": "size of a head"})
    batch: int = field(default=1, metadata={"help": "rows of the batch"})
    dtype: str = field(default="float32", metadata={"help": f"one of {', '.join(DTYPES)}"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    rounds: int = field(default=5, metadata={"help": "repeats, in which all contenders take turns"})
    dense_up_to: int = field(
        default=8192, metadata={"help": "the longest length at which dense attention with a mask takes part"}
    )
    causal_up_to: int = field(
        default=16384, metadata={"help": "the longest length at which dense causal attention takes part"}
    )
    flex_up_to: int = field(
        default=0, metadata={"help": "the longest length at which compiled FlexAttention takes part; 0: nowhere"}
    )
    memory_from: int = field(
        default=4096, metadata={"help": "the shortest length at which memory is measured, in a process for each mask"}
    )


README_MASKS = ["window:256", "strided:64", "log_sparse", "window:256|sinks:4", "strided:64|window:64", "causal"]
# What the table and the picture of the README are made of, one after the other.
PRESETS: dict[str, list[BenchOptions]] = {
    "readme": [
        BenchOptions(mask=["causal", "window:64"], length=[128, 256, 512], rounds=9, dense_up_to=512),
        BenchOptions(mask=README_MASKS, length=[1024, 2048, 4096], memory_from=8192, rounds=3),
        BenchOptions(mask=README_MASKS, length=[8192], memory_from=8192, flex_up_to=8192, rounds=3),
        BenchOptions(mask=["window:512", *README_MASKS[:-1]], length=[16384], rounds=2, memory_from=131072),
        BenchOptions(mask=README_MASKS[:-1], length=[131072], rounds=1),
    ],
}


def bench(
    options: BenchOptions,
    output: OutputOption,
    preset: Annotated[
        str | None, typer.Option(help=f"a list of measurements instead of these options: {', '.join(PRESETS)}")
    ] = None,
) -> None:
    """Time and memory of attention under masks, forward and backward, against dense attention in the same run."""
    from ..bench import bench as run

    run(options, output, preset)
