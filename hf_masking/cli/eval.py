"""`hf-masking eval MODEL`: perplexity under one or several masks."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from ..evaluation import Perplexity, encode, perplexity
from ..files import check_file
from ..modeling import layer_masks, patched
from .commands.eval import WindowOptions
from .console import CARRIED, bos_of, describe_machine, load_data, load_model, load_tokenizer, write_json
from .options import DataOptions, MaskOptions, OutputOption
from .terminal import progress_bar, tables_beside

BUCKETS = 8  # parts of the context for which the loss is printed


def evaluate(model: str, masks: MaskOptions, data: DataOptions, windows: WindowOptions, output: OutputOption) -> None:
    if output.output is not None:
        check_file(output.output)
    layers, text = masks.layers(), load_data(data)
    tokenizer = load_tokenizer(model)
    limit = 32_768 if windows.max_tokens is None and data.data == "stdlib" else windows.max_tokens
    token_ids, n_bytes = encode(text, tokenizer, limit)
    bos = bos_of(tokenizer, windows.bos)
    loaded = load_model(model)
    rows = []
    for mask in masks.mask or [CARRIED if layer_masks(loaded) else "causal"]:
        with patched(loaded, None if mask == CARRIED else mask, layers=layers):
            result, seconds = _measure(loaded, token_ids, windows, bos, n_bytes, mask)
        rows.append({"mask": mask, **dataclasses.asdict(result), "tokens_per_second": result.tokens / seconds})
    console = tables_beside(output.output)
    console.print(_table(rows, text.source, windows.context))
    console.print(_positions(rows))
    if output.output is not None:
        report = {
            "model": model,
            "text": {"source": text.source, "sha256": text.sha256, "tokens": len(token_ids), "bytes": n_bytes},
            "layers": {str(layer): spec for layer, spec in layers.items()},
            "context": windows.context,
            "stride": windows.stride or windows.context,
            "bos": bos is not None,
            "machine": describe_machine(),
            "rows": rows,
        }
        write_json(output.output, report)


def _measure(
    model: PreTrainedModel, token_ids: Tensor, windows: WindowOptions, bos: int | None, n_bytes: int | None, mask: str
) -> tuple[Perplexity, float]:
    started = time.perf_counter()
    with progress_bar(mask, len(token_ids)) as bar:
        result = perplexity(
            model,
            token_ids,
            context=windows.context,
            stride=windows.stride,
            bos_token_id=bos,
            batch_size=windows.batch_size,
            text_bytes=n_bytes,
            on_progress=lambda tokens: bar.advance(bar.task_ids[0], tokens),
        )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _table(rows: list[dict[str, Any]], source: str, context: int) -> Table:
    table = Table(title=f"{source}: {rows[0]['tokens']:,} tokens, context {context}")
    table.add_column("mask", overflow="fold")
    for heading in ("perplexity", "nats/token", "bits/byte", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        bits = "unknown" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        table.add_row(
            row["mask"],
            f"{row['perplexity']:.3f}",
            f"{row['nats_per_token']:.4f}",
            bits,
            f"{row['tokens_per_second']:,.0f}",
        )
    return table


def _positions(rows: list[dict[str, Any]]) -> Table:
    """Mean loss in equal parts of the context: where in it a mask hurts."""
    context = len(rows[0]["by_position"])
    edges = sorted({round(context * part / BUCKETS) for part in range(BUCKETS + 1)})
    parts = list(itertools.pairwise(edges))
    table = Table(title="loss (nats) by position in the context")
    table.add_column("mask", overflow="fold")
    for first, end in parts:
        table.add_column(f"{first}-{end - 1}", justify="right")
    for row in rows:
        cells = []
        for first, end in parts:
            losses = [loss for loss in row["by_position"][first:end] if loss is not None]
            cells.append(f"{sum(losses) / len(losses):.3f}" if losses else "-")
        table.add_row(row["mask"], *cells)
    return table
