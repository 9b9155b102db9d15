"""Benchmark adaptive masks against dense attention: selected blocks, learned spans, a decode step.

python scripts/bench_adaptive.py --output docs/bench_adaptive.json
"""

from __future__ import annotations

import dataclasses
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
from hf_masking.evaluation.timing import Timing, interleaved, matrix_product, timed
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
    """A measurement: median seconds, speed-up over dense attention, and computed over allowed pairs.

    disturbed: the machine was busy with something else; so one of the two figures cannot be trusted.
    """

    mask: str
    what: str
    length: int
    seconds: float
    quartiles: tuple[float, float]
    times_dense: float
    disturbed: bool
    computed_over_allowed: float | None = None

    @classmethod
    def of(cls, mask: str, what: str, length: int, timing: Timing, dense: Timing, share: float | None) -> Result:
        seconds, speed_up = timing.spread, timing.speed_up(dense)
        if seconds is None or speed_up is None:
            raise timing.error or dense.error or RuntimeError(f"{mask} was not measured")
        disturbed = seconds.disturbed or speed_up.disturbed
        quartiles = seconds.low, seconds.high
        return cls(mask, what, length, seconds.median, quartiles, speed_up.median, disturbed, share)


def inputs(queries: int, keys: int, gradients: bool) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(queries,), (keys,), (keys,)]
    return [torch.randn(1, HEADS, *shape, SIZE, generator=draw).requires_grad_(gradients) for shape in shapes]


def side_by_side(contenders: dict[str, Callable[[], None]], rounds: int, amount: int = 1) -> dict[str, Timing]:
    """Return the seconds per unit of the ``amount`` that each call does, of interleaved runs."""
    turns = [timed(run, torch.device("cpu"), amount) for run in contenders.values()]
    return dict(zip(contenders, interleaved(turns, rounds, matrix_product()), strict=True))


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
    timings = side_by_side(contenders, rounds)
    results = []
    for mask, timing in timings.items():
        share = None if mask == IS_CAUSAL else computed_over_allowed(mask, tensors, features[mask])
        results.append(Result.of(mask, "forward and backward", length, timing, timings[IS_CAUSAL], share))
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

    timings = side_by_side({"SDPA": dense, **{mask: step(mask) for mask in masks}}, rounds, steps)
    return [
        Result.of(mask, "a step of decoding", length, timing, timings["SDPA"], None) for mask, timing in timings.items()
    ]


def main(
    output: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
    choice_length: Annotated[int, typer.Option(help="tokens at which chosen blocks are trained")] = 16384,
    span_length: Annotated[int, typer.Option(help="tokens at which spans are trained")] = 8192,
    context: Annotated[int, typer.Option(help="tokens in the cache of a step of decoding")] = 32768,
    rounds: Annotated[int, typer.Option(help="quiet rounds, interleaved over all contenders")] = 15,
) -> None:
    """Measure the cost of adaptive masks against dense attention."""
    silence_libraries()
    results = training(CHOICES, choice_length, rounds)
    results += training(SPANS, span_length, rounds)
    results += decoding(CHOICES, context, rounds, 20)
    for row in results:
        share = "" if row.computed_over_allowed is None else f", {row.computed_over_allowed:.2f} computed over allowed"
        typer.echo(
            f"{row.mask}: {row.what} at {row.length:,}: {row.seconds * 1e3:,.2f} ms, {row.times_dense:.2f}x{share}"
            f"{', disturbed' * row.disturbed}",
        )
    if output is not None:
        rows = [dataclasses.asdict(row) for row in results]
        write_json(
            output, {"heads": HEADS, "head_size": SIZE, "rounds": rounds, "machine": describe_machine(), "rows": rows}
        )


if __name__ == "__main__":
    typer.run(main)
