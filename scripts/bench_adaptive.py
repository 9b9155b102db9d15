"""Benchmark adaptive masks against dense attention: selected blocks, learned spans, a decode step.

python scripts/bench_adaptive.py --output docs/bench_adaptive.json
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hf_masking import masked_attention, parse_mask
from hf_masking.adaptive import Features, TopBlocks
from hf_masking.evaluation.loading import silence_libraries
from hf_masking.files import write_json
from hf_masking.machine import describe_machine
from hf_masking.plan import Documents
from hf_masking.plan.adaptive import Document, parts_by_heads

HEADS, SIZE = 8, 64
CHOICES = ["top_blocks:block=64,k=8", "top_blocks:block=64,k=8,score=mean"]
SPANS = ["adaptive_span:max=1024", "adaptive_span:max=8192"]
IS_CAUSAL = "SDPA is_causal"


@dataclasses.dataclass(frozen=True)
class Result:
    """A measurement: median seconds, speed-up over dense attention, and computed over allowed pairs."""

    mask: str
    what: str
    length: int
    seconds: float
    times_dense: float
    computed_over_allowed: float | None = None


def inputs(queries: int, keys: int, gradients: bool) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(queries,), (keys,), (keys,)]
    return [torch.randn(1, HEADS, *shape, SIZE, generator=draw).requires_grad_(gradients) for shape in shapes]


def take_turns(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call; the first round, which allocates memory and plans, does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def forward_and_backward(mask: str, tensors: list[Tensor], features: list[Features]) -> Callable[[], None]:
    query, key, value = tensors
    gradient = torch.ones_like(query)

    def run() -> None:
        if mask == IS_CAUSAL:
            output = scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            output = masked_attention(query, key, value, mask, features=features)
        torch.autograd.grad(output, tensors, gradient)

    return run


def shrunk(mask: str) -> list[Features]:
    """Set the spans to about a tenth of the longest, differently in each head."""
    leaf = parse_mask(mask)
    shares = torch.linspace(0.05, 0.15, HEADS)
    return [Features((shares * leaf.max)[None, :, None, None])]  # type: ignore[attr-defined]


def computed_over_allowed(mask: str, tensors: list[Tensor], features: list[Features]) -> float:
    """Return the computed pairs over the pairs that have a weight."""
    length = tensors[0].shape[2]
    (segment,) = Documents.single(length, length).segments
    read = tuple(Features(one.query[0], None, one.hard) for one in features)
    leaf = parse_mask(mask)
    document = Document(segment, tensors[0][0].detach(), tensors[1][0].detach(), read)
    computed = 0
    for heads, parts in parts_by_heads(leaf.union, document):
        computed += (heads.stop - heads.start) * sum(part.touched for part in parts)
    positions = torch.arange(length)
    if isinstance(leaf, TopBlocks):
        allowed = HEADS * int(
            (positions % leaf.block + 1 + (positions // leaf.block).clamp(max=leaf.k) * leaf.block).sum()
        )
    else:
        reaches = (read[0].query.flatten() + leaf.ramp).ceil().long()  # type: ignore[attr-defined]
        allowed = sum(int((positions + 1).clamp(max=int(reach)).sum()) for reach in reaches)
    return computed / allowed


def training(masks: list[str], length: int, rounds: int) -> list[Result]:
    tensors = inputs(length, length, True)
    features = {mask: shrunk(mask) if "span" in mask else [] for mask in masks}
    contenders = {mask: forward_and_backward(mask, tensors, features.get(mask, [])) for mask in [IS_CAUSAL, *masks]}
    seconds = take_turns(contenders, rounds)
    results = []
    for mask in seconds:
        share = None if mask == IS_CAUSAL else computed_over_allowed(mask, tensors, features[mask])
        dense = seconds[IS_CAUSAL] / seconds[mask]
        results.append(Result(mask, "forward and backward", length, seconds[mask], dense, share))
    return results


@torch.inference_mode()
def decoding(masks: list[str], length: int, rounds: int, steps: int) -> list[Result]:
    """Measure one query of one layer, with the block summaries of a cache."""
    query, key, value = inputs(1, length, False)

    def dense() -> None:
        for _ in range(steps):
            scaled_dot_product_attention(query, key, value)

    def step(mask: str) -> Callable[[], None]:
        leaf = parse_mask(mask)
        assert isinstance(leaf, TopBlocks)
        summaries = leaf.summarize(key)

        def run() -> None:
            for _ in range(steps):
                masked_attention(query, key, value, mask, summaries=summaries)

        return run

    seconds = take_turns({"SDPA": dense, **{mask: step(mask) for mask in masks}}, rounds)
    return [
        Result(mask, "a step of decoding", length, taken / steps, seconds["SDPA"] / taken)
        for mask, taken in seconds.items()
    ]


def main(
    output: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
    choice_length: Annotated[int, typer.Option(help="tokens at which chosen blocks are trained")] = 16384,
    span_length: Annotated[int, typer.Option(help="tokens at which spans are trained")] = 8192,
    context: Annotated[int, typer.Option(help="tokens in the cache of a step of decoding")] = 32768,
    rounds: Annotated[int, typer.Option(help="repeats, interleaved over all contenders")] = 15,
) -> None:
    """Measure the cost of adaptive masks against dense attention."""
    silence_libraries()
    results = training(CHOICES, choice_length, rounds)
    results += training(SPANS, span_length, rounds)
    results += decoding(CHOICES, context, rounds, 20)
    for row in results:
        share = "" if row.computed_over_allowed is None else f", {row.computed_over_allowed:.2f} computed over allowed"
        typer.echo(
            f"{row.mask}: {row.what} at {row.length:,}: {row.seconds * 1e3:,.2f} ms, {row.times_dense:.2f}x{share}",
        )
    if output is not None:
        rows = [dataclasses.asdict(row) for row in results]
        write_json(
            output, {"heads": HEADS, "head_size": SIZE, "rounds": rounds, "machine": describe_machine(), "rows": rows}
        )


if __name__ == "__main__":
    typer.run(main)
