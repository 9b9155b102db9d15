"""`hf-masking bench`: attention alone, masks against what one would run without them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import torch
import typer

from ..comparison.break_even import pays_from
from ..evaluation.benchmark import (
    IS_CAUSAL,
    RIVALS,
    Row,
    Shape,
    contenders_for,
    measure,
    measure_memory,
)
from ..files import write_json
from ..machine import describe_machine
from ..pictures import warn_of_no_pictures
from ..spec import parse_mask
from ..streams import is_stream
from ..tables import write_markdown
from . import bench_report
from .commands.bench import DTYPES, PRESETS, BenchOptions
from .console import check_report, say_written
from .failures import reason_of
from .options import OutputOption, at_least, at_most
from .terminal import errors, tables_beside

LONGEST, WIDEST = 2**24, 2**16  # tokens; heads, their size and rows: no machine holds more


def bench(options: BenchOptions, output: OutputOption, preset: str | None) -> None:
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    parts = [options] if preset is None else PRESETS[preset]
    if preset is not None:
        _refuse_beside_preset(preset, options)
        parts = [dataclasses.replace(part, device=options.device, dtype=options.dtype) for part in parts]
    for part in parts:
        _check(part)
    if output.output is not None:
        check_report(output.output)
        warn_of_no_pictures()
    started = time.perf_counter()
    rows = [row for part in parts for row in _measure(part)]
    console = tables_beside(output.output)
    console.print(bench_report.grid(rows).table(_title(parts[0])))
    for line in (*bench_report.failures(rows), *_verdicts(rows)):
        console.print(line, soft_wrap=True)
    if output.output is not None:
        document = {
            "options": [dataclasses.asdict(part) for part in parts],
            "machine": describe_machine(),
            "seconds": time.perf_counter() - started,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_json(output.output, document)
        say_written(output.output)
    if output.output is not None and not is_stream(output.output):
        parts_of_page = bench_report.grid(rows).markdown(), *bench_report.failures(rows)
        page = output.output.with_suffix(".md")
        write_markdown(page, _title(parts[0]), *parts_of_page)
        for path in (page, *bench_report.write_picture(output.output.with_suffix(".png"), rows, _title(parts[0]))):
            say_written(path)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _refuse_beside_preset(preset: str, options: BenchOptions) -> None:
    for option in dataclasses.fields(options):
        default = getattr(BenchOptions(), option.name)
        if option.name not in ("device", "dtype") and getattr(options, option.name) != default:
            flag = option.name.replace("_", "-")
            raise ValueError(f"--preset {preset} has its own --{flag}; leave one of them out")


def _check(options: BenchOptions) -> None:
    at_least(1, length=min(options.length), heads=options.heads, head_size=options.head_size, batch=options.batch)
    at_least(1, rounds=options.rounds)
    at_most(LONGEST, length=max(options.length))
    at_most(WIDEST, heads=options.heads, head_size=options.head_size, batch=options.batch)
    for mask in options.mask:
        if parse_mask(mask).is_adaptive:
            raise ValueError(
                f"bench measures static masks, and '{mask}' looks at the content, of which there is none here; "
                "run python scripts/bench_adaptive.py"
            )
        if parse_mask(mask).needs:
            raise ValueError(f"'{mask}' needs marked tokens, of which there are none here; write one such as prefix:17")
        groups = len(parse_mask(mask).heads)
        if options.heads % groups:
            raise ValueError(f"--heads {options.heads} is not a multiple of the {groups} masks of {mask}")
    if options.key_heads is not None and (options.key_heads < 1 or options.heads % options.key_heads):
        raise ValueError(f"--key-heads must divide --heads {options.heads}, got {options.key_heads}")
    if options.dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if options.device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is at hand; use --device cpu")


def _shape(options: BenchOptions, length: int) -> Shape:
    key_heads = options.heads if options.key_heads is None else options.key_heads
    return Shape(length, options.heads, key_heads, options.head_size, options.batch, options.dtype, options.device)


def _title(options: BenchOptions) -> str:
    heads = f"{options.heads} heads of {options.head_size}"
    return f"attention, batch {options.batch}, {heads}, {options.dtype}, {options.device}"


def _measure(options: BenchOptions) -> Iterator[Row]:
    for length in sorted(set(options.length)):
        shape = _shape(options, length)
        contenders = list(
            contenders_for(
                options.mask,
                shape,
                dense=length <= options.dense_up_to,
                causal=length <= options.causal_up_to,
                flex=length <= options.flex_up_to,
            )
        )
        errors.print(f"{length} tokens: {len(contenders)} contenders, {options.rounds} rounds")
        try:
            rows = measure(shape, contenders, options.rounds)
        except Exception as error:  # most often memory, and then shorter lengths stay what they are
            reason = reason_of(error)
            rows = [Row(length, contender.mask, contender.backend, 0, error=reason) for contender in contenders]
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
