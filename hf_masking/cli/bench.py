"""`hf-masking bench`: attention alone, masks against what one would run without them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import typer

from ..evaluation.benchmark import (
    IS_CAUSAL,
    RIVALS,
    Row,
    Shape,
    contenders_for,
    measure,
    measure_memory,
)
from ..evaluation.break_even import pays_from
from ..masks import Mask
from . import bench_report, tables
from .console import check_report, console, describe_machine, errors, write_json
from .options import OutputOption

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What is measured. The defaults take about two minutes on two cores."""

    mask: list[str] = dataclasses.field(
        default_factory=lambda: ["window:256", "strided:64", "window:256|sinks:4"],
        metadata={"help": "a mask, e.g. 'window:256|sinks:4'; repeatable"},
    )
    length: list[int] = dataclasses.field(
        default_factory=lambda: [512, 1024, 2048, 4096],
        metadata={"help": "number of tokens; repeatable"},
    )
    heads: int = dataclasses.field(default=8, metadata={"help": "query heads"})
    key_heads: int | None = dataclasses.field(default=None, metadata={"help": "key heads; by default as many"})
    head_size: int = dataclasses.field(default=64, metadata={"help": "size of a head"})
    batch: int = dataclasses.field(default=1, metadata={"help": "rows of the batch"})
    dtype: str = dataclasses.field(default="float32", metadata={"help": f"one of {', '.join(DTYPES)}"})
    device: str = dataclasses.field(default="cpu", metadata={"help": "cpu or cuda"})
    rounds: int = dataclasses.field(default=5, metadata={"help": "repeats, in which all contenders take turns"})
    dense_up_to: int = dataclasses.field(
        default=8192, metadata={"help": "the longest length at which dense attention with a mask takes part"}
    )
    causal_up_to: int = dataclasses.field(
        default=16384, metadata={"help": "the longest length at which dense causal attention takes part"}
    )
    flex_up_to: int = dataclasses.field(
        default=0, metadata={"help": "the longest length at which compiled FlexAttention takes part; 0: nowhere"}
    )
    memory_from: int = dataclasses.field(
        default=4096, metadata={"help": "the shortest length at which memory is measured, in a process for each mask"}
    )

    def check(self) -> None:
        for mask in self.mask:
            if Mask.parse(mask).is_adaptive:
                raise ValueError(
                    f"bench measures static masks, and '{mask}' looks at the content, of which there is none here; "
                    "run python scripts/bench_adaptive.py"
                )
            groups = len(Mask.parse(mask).heads)
            if self.heads % groups:
                raise ValueError(f"--heads {self.heads} is not a multiple of the {groups} masks of {mask}")
        counts = {"length": min(self.length), "heads": self.heads, "head-size": self.head_size, "batch": self.batch}
        for name, value in {**counts, "rounds": self.rounds}.items():
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.key_heads is not None and (self.key_heads < 1 or self.heads % self.key_heads):
            raise ValueError(f"--key-heads must divide --heads {self.heads}, got {self.key_heads}")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"--device must be cpu or cuda, got {self.device!r}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is at hand; use --device cpu")

    def shape(self, length: int) -> Shape:
        key_heads = self.heads if self.key_heads is None else self.key_heads
        return Shape(length, self.heads, key_heads, self.head_size, self.batch, self.dtype, self.device)


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
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    parts = [options] if preset is None else PRESETS[preset]
    if preset is not None:
        parts = [dataclasses.replace(part, device=options.device, dtype=options.dtype) for part in parts]
    for part in parts:
        part.check()
    if output.output is not None:
        check_report(output.output)
    started = time.perf_counter()
    rows = [row for part in parts for row in _measure(part)]
    console.print(bench_report.grid(rows).table(_title(parts[0])))
    for line in _verdicts(rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if output.output is not None:
        document = {
            "options": [dataclasses.asdict(part) for part in parts],
            "machine": describe_machine(),
            "seconds": time.perf_counter() - started,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_json(output.output, document)
        tables.write_markdown(output.output.with_suffix(".md"), _title(parts[0]), bench_report.grid(rows).markdown())
        bench_report.write_picture(output.output.with_suffix(".png"), rows, _title(parts[0]))


def _title(options: BenchOptions) -> str:
    heads = f"{options.heads} heads of {options.head_size}"
    return f"attention, batch {options.batch}, {heads}, {options.dtype}, {options.device}"


def _measure(options: BenchOptions) -> Iterator[Row]:
    for length in sorted(set(options.length)):
        shape = options.shape(length)
        contenders = list(
            contenders_for(
                options.mask,
                shape,
                dense=length <= options.dense_up_to,
                causal=length <= options.causal_up_to,
                flex=length <= options.flex_up_to,
            )
        )
        errors.print(f"{length} tokens: {len(contenders)} contenders, {options.rounds} rounds", highlight=False)
        rows = measure(shape, contenders, options.rounds)
        for contender, row in zip(contenders, rows, strict=True):
            if length >= options.memory_from and contender.backend != "flex" and row.error is None:
                measure_memory(shape, contender, row)
        yield from rows


def _verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """From which length on each mask is faster to train than dense causal attention."""
    for mask in dict.fromkeys(row.mask for row in rows if row.backend not in RIVALS):
        if mask == "causal" or not any(row.backend == IS_CAUSAL for row in rows):
            continue
        length = pays_from(rows, mask)
        pays = f"pays from {length:,} tokens on" if length else "does not pay at these lengths"
        yield f"{mask}: {pays} (forward and backward, against {IS_CAUSAL})"
