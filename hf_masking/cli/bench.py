"""Run `hf-masking bench`: attention under masks against dense attention."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import typer

from ..comparison.break_even import break_even_length, is_known
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
from .console import check_report, say_written
from .failures import reason_of
from .loading import check_device, check_dtype
from .options.bench import PRESETS, BenchOptions, BenchSettings
from .terminal import errors, print_table, tables_beside
from .values import at_least, at_most

LONGEST = 2**24  # tokens
WIDEST = 2**16  # heads, head size and batch


def run(options: BenchOptions) -> None:
    """Measure attention under each mask at each length; print and write the figures."""
    settings, preset, output = options.settings, options.preset, options.output.path
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    parts = [settings] if preset is None else PRESETS[preset]
    if preset is not None:
        _refuse_beside_preset(preset, settings)
        parts = [dataclasses.replace(part, device=settings.device, dtype=settings.dtype) for part in parts]
    for part in parts:
        _check(part)
    if output is not None:
        check_report(output)
        warn_of_no_pictures()
    started = time.perf_counter()
    rows = [row for part in parts for row in _measure(part)]
    console = tables_beside(output)
    print_table(console, bench_report.grid(rows), _title(parts[0]))
    for line in (*bench_report.notes(rows), *_verdicts(rows)):
        console.print(line, soft_wrap=True)
    if output is not None:
        document = {
            "options": [dataclasses.asdict(part) for part in parts],
            "machine": describe_machine(),
            "seconds": time.perf_counter() - started,
            "rows": [row.document() for row in rows],
        }
        write_json(output, document)
        say_written(output)
    if output is not None and not is_stream(output):
        parts_of_page = bench_report.grid(rows).markdown(), *bench_report.notes(rows)
        page = output.with_suffix(".md")
        write_markdown(page, _title(parts[0]), *parts_of_page)
        for path in (page, *bench_report.write_picture(output.with_suffix(".png"), rows, _title(parts[0]))):
            say_written(path)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _refuse_beside_preset(preset: str, settings: BenchSettings) -> None:
    for option in dataclasses.fields(settings):
        default = getattr(BenchSettings(), option.name)
        if option.name not in ("device", "dtype") and getattr(settings, option.name) != default:
            flag = option.name.replace("_", "-")
            raise ValueError(f"--preset {preset} has its own --{flag}; leave one of them out")


def _check(settings: BenchSettings) -> None:
    at_least(1, length=min(settings.length), heads=settings.heads, head_size=settings.head_size, batch=settings.batch)
    at_least(1, rounds=settings.rounds)
    at_most(LONGEST, length=max(settings.length))
    at_most(WIDEST, heads=settings.heads, head_size=settings.head_size, batch=settings.batch)
    for mask in settings.mask:
        if parse_mask(mask).is_adaptive:
            raise ValueError(
                f"bench measures static masks, and '{mask}' is adaptive: it needs hidden states; "
                "run python scripts/bench_adaptive.py"
            )
        if parse_mask(mask).needs:
            raise ValueError(f"'{mask}' needs marked tokens, and there are none here; write one such as prompt:17")
        groups = len(parse_mask(mask).heads)
        if settings.heads % groups:
            raise ValueError(f"--heads {settings.heads} is not a multiple of the {groups} masks of {mask}")
    if settings.key_heads is not None and (settings.key_heads < 1 or settings.heads % settings.key_heads):
        raise ValueError(f"--key-heads must divide --heads {settings.heads}, got {settings.key_heads}")
    check_dtype(settings.dtype)
    check_device(settings.device)


def _shape(settings: BenchSettings, length: int) -> Shape:
    key_heads = settings.heads if settings.key_heads is None else settings.key_heads
    return Shape(length, settings.heads, key_heads, settings.head_size, settings.batch, settings.dtype, settings.device)


def _title(settings: BenchSettings) -> str:
    heads = f"{settings.heads} heads of {settings.head_size}"
    return f"attention, batch {settings.batch}, {heads}, {settings.dtype}, {settings.device}"


def _measure(settings: BenchSettings) -> Iterator[Row]:
    for length in sorted(set(settings.length)):
        shape = _shape(settings, length)
        contenders = list(
            contenders_for(
                settings.mask,
                shape,
                dense=length <= settings.dense_up_to,
                causal=length <= settings.causal_up_to,
                flex=length <= settings.flex_up_to,
            )
        )
        errors.print(f"{length} tokens: {len(contenders)} variants, {settings.rounds} rounds")
        try:
            rows = measure(shape, contenders, settings.rounds)
        except Exception as error:  # most often memory; the shorter lengths are kept
            reason = reason_of(error)
            rows = [Row(length, contender.mask, contender.backend, 0, error=reason) for contender in contenders]
        for contender, row in zip(contenders, rows, strict=True):
            if length >= settings.memory_from and contender.backend != "flex" and row.error is None:
                measure_memory(shape, contender, row)
        yield from rows


def _verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line per mask: its break-even length for training, against dense causal attention."""
    for mask in dict.fromkeys(row.mask for row in rows if row.backend not in RIVALS):
        if mask == "causal" or not any(row.backend == IS_CAUSAL for row in rows):
            continue
        length = break_even_length(rows, mask)
        breaks_even = f"breaks even at {length:,} tokens" if length else "does not break even at these lengths"
        verdict = breaks_even if is_known(rows, mask) else "break-even not known, every measurement was disturbed"
        yield f"{mask}: {verdict} (forward and backward, against {IS_CAUSAL})"
