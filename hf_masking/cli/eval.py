"""Run `hf-masking eval MODEL`: perplexity under one or several masks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from transformers import PreTrainedModel

from ..evaluation import Measurement, WindowedText, encode, side_by_side
from ..evaluation.loading import bos_of, check_vocabulary, load_tokenizer
from ..evaluation.timing import DISTURBED
from ..files import check_file, write_json
from ..machine import describe_machine
from ..modeling import check_fits, label_of
from ..tables import Grid
from .console import load_data, say_written
from .failures import reason_of
from .loading import check_loading, load_placed
from .masking import check_specs, under_masks, what_runs
from .options.eval import EvalOptions
from .probes import run_probes
from .terminal import counting_up, print_failures, print_table, tables_beside
from .values import refuse_without_effect

BUCKETS = 8  # parts of the context for which the loss is printed

Row = dict[str, Any]


def run(options: EvalOptions) -> None:
    """Evaluate a model under each mask, and print the perplexities, or the answers to probes, side by side."""
    if options.probes.probe:
        run_probes(options)
        return
    for name in ("questions", "seed"):
        refuse_without_effect(options.probes, name, "goes with --probe; give both, or leave it out")
    masks, data, windows, output = options.masks, options.data, options.windows, options.output.path
    if output is not None:
        check_file(output)
    check_specs(masks)
    check_loading(options.loading)
    text, tokenizer = load_data(data), load_tokenizer(options.model, **options.loading.where())
    limit = 32_768 if windows.max_tokens is None and data.data == "stdlib" else windows.max_tokens
    token_ids, n_bytes = encode(text, tokenizer, limit)
    bos = bos_of(tokenizer, windows.bos)
    windowed = WindowedText(token_ids, windows.context, windows.stride, bos, windows.batch_size)
    loaded = load_placed(options.model, options.loading)
    check_vocabulary(loaded, tokenizer)
    check_fits(loaded, token_ids, windows.context)
    models = under_masks(loaded, masks, "its perplexity")
    measured = _measured(models, windowed, n_bytes)
    if measured[0].error is not None and all(measurement.error for measurement in measured):
        raise measured[0].error
    rows = [_row(*pair) for pair in zip(models, measured, strict=True)]
    title = f"{text.source}: {len(token_ids):,} tokens, context {windows.context}"
    _print(rows, title, tables_beside(output))
    if output is not None:
        report = {
            "model": options.model,
            "text": {"source": text.source, "sha256": text.sha256, "tokens": len(token_ids), "bytes": n_bytes},
            "context": windows.context,
            "stride": windowed.stride,
            "bos": bos is not None,
            "machine": describe_machine(),
            "rows": rows,
        }
        write_json(output, report)
        say_written(output)
    if any(measurement.error for measurement in measured):
        raise typer.Exit(1)


def _measured(models: Sequence[PreTrainedModel], text: WindowedText, text_bytes: int | None) -> list[Measurement]:
    """Measure all models, and show how far they are."""
    with counting_up(f"{len(models)} masks", len(models) * len(text.targets), "tokens scored") as on_progress:
        return side_by_side(models, text, text_bytes=text_bytes, on_progress=on_progress)


def _row(model: PreTrainedModel, measured: Measurement) -> Row:
    named: Row = {**what_runs(model), "runs": label_of(model)}
    if measured.error is not None:
        return named | {"error": reason_of(measured.error)}
    assert measured.result is not None
    assert measured.tokens_per_second is not None
    speed = measured.tokens_per_second
    return {
        **named,
        **dataclasses.asdict(measured.result),
        "tokens_per_second": speed.median,
        "tokens_per_second_quartiles": [speed.low, speed.high],
        "disturbed": speed.disturbed,
    }


def _print(rows: Sequence[Row], title: str, console: Console) -> None:
    done = [row for row in rows if "error" not in row]
    print_table(console, _quality(done), title)
    print_table(console, _positions(done), "loss (nats) by position in the context")
    if any(row["disturbed"] for row in done):
        console.print(DISTURBED, soft_wrap=True)
    print_failures(console, rows)


def _quality(rows: Sequence[Row]) -> Grid:
    cells = []
    for row in rows:
        bits = "unknown" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        speed = f"{row['tokens_per_second']:,.0f}{'*' * row['disturbed']}"
        cells.append([row["runs"], f"{row['perplexity']:.3f}", f"{row['nats_per_token']:.4f}", bits, speed])
    return Grid(("mask", "perplexity", "nats/token", "bits/byte", "tokens/s"), cells)


def _positions(rows: Sequence[Row]) -> Grid:
    """Return the table of the mean loss in equal parts of the context."""
    context = len(rows[0]["by_position"])
    edges = sorted({round(context * part / BUCKETS) for part in range(BUCKETS + 1)})
    parts = list(itertools.pairwise(edges))
    cells = []
    for row in rows:
        means = []
        for first, end in parts:
            losses = [loss for loss in row["by_position"][first:end] if loss is not None]
            means.append(f"{sum(losses) / len(losses):.3f}" if losses else "-")
        cells.append([row["runs"], *means])
    return Grid(("mask", *(f"{first}-\n{end - 1}" for first, end in parts)), cells)
