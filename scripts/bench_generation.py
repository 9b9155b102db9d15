"""Benchmark decoding of a model shaped like GPT-2 small: under a mask and with its own caches, interleaved.

python scripts/bench_generation.py --output docs/bench_generation.json
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

from hf_masking import patch_model
from hf_masking.evaluation.decoding import seconds_per_token
from hf_masking.evaluation.loading import silence_libraries
from hf_masking.evaluation.timing import Contender, interleaved, matrix_product
from hf_masking.files import write_json
from hf_masking.machine import describe_machine
from hf_masking.modeling.caching.adopt import adopt
from hf_masking.modeling.caching.layer import MaskedLayer

MASK = "window:256|sinks:4"
ROOM = 256  # columns after the context, in which the static cache can decode


@dataclasses.dataclass(frozen=True)
class Result:
    context: int
    cache: str
    milliseconds_per_token: float
    quartiles: tuple[float, float]
    disturbed: bool
    tokens_per_second: float
    cache_bytes: int


def fill(cache: Cache, config: GPT2Config, context: int) -> None:
    """Fill a cache with random keys and values, as a prompt of that length would."""
    for layer in range(config.n_layer):
        states = [torch.randn(1, config.n_head, context, config.n_embd // config.n_head) for _ in range(2)]
        cache.update(*states, layer)


def contenders(
    model: PreTrainedModel, masked: PreTrainedModel, context: int
) -> dict[str, tuple[PreTrainedModel, Cache]]:
    caches = {
        MASK: (masked, DynamicCache(config=masked.config)),
        "dynamic cache": (model, DynamicCache(config=model.config)),
        "static cache": (model, StaticCache(config=model.config, max_cache_len=context + ROOM)),
    }
    adopt(caches[MASK][1], masked)
    for _, cache in caches.values():
        fill(cache, model.config, context)
    for layer in caches[MASK][1].layers:
        assert isinstance(layer, MaskedLayer)
        # As if the patched model had read the context.
        layer.masked = True
    return caches


def decoding(model: PreTrainedModel, cache: Cache, context: int, steps: int) -> Contender:
    """Return a contender that decodes a few tokens in each turn, after those of its turns before."""
    columns = itertools.count(context, steps)
    return lambda turn: seconds_per_token(model, cache, next(columns), steps)


def measure(model: PreTrainedModel, masked: PreTrainedModel, context: int, rounds: int, steps: int) -> list[Result]:
    """Return the time of a step; each round runs a few steps of each contender."""
    caches = contenders(model, masked, context)
    turns = [decoding(used, cache, context, steps) for used, cache in caches.values()]
    spare = ROOM // steps - rounds - 1  # further turns for which the static cache has room
    timings = interleaved(turns, rounds, matrix_product(), patience=max(0, min(rounds, spare)))
    results = []
    for (name, (_, cache)), timing in zip(caches.items(), timings, strict=True):
        spread = timing.scaled(1e3)
        if spread is None:
            raise timing.error or RuntimeError(f"{name} was not measured")
        held = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for k in cache.layers
            for x in (k.keys, k.values)
        }
        quartiles, speed = (spread.low, spread.high), 1e3 / spread.median
        results.append(Result(context, name, spread.median, quartiles, spread.disturbed, speed, sum(held.values())))
    return results


def main(
    context: Annotated[list[int] | None, typer.Option(help="tokens in the cache; repeatable")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each contender")] = 5,
    steps: Annotated[int, typer.Option(help="tokens in a turn")] = 8,
    layers: Annotated[int, typer.Option(help="layers of the model")] = 12,
    width: Annotated[int, typer.Option(help="width of the model, a multiple of 64")] = 768,
    output: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Measure the time per decoded token and the bytes of the cache, by context length."""
    silence_libraries()
    contexts = context or [512, 32_768]
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, n_positions=max(contexts) + ROOM)
    model = GPT2LMHeadModel(config).eval()
    masked = patch_model(copy.deepcopy(model), MASK)
    results = []
    for length in contexts:
        rows = measure(model, masked, length, rounds, steps)
        for row in rows:
            size = f"{row.cache_bytes / 2**20:,.1f} MiB"
            line = f"{length:,} tokens, {row.cache}: {row.milliseconds_per_token:.1f} ms a token, {size}"
            line += ", disturbed" * row.disturbed
            typer.echo(line)
        results += rows
    if output is not None:
        shape = {"layers": layers, "width": width, "mask": MASK}
        rows_as_json = [dataclasses.asdict(row) for row in results]
        write_json(output, {"machine": describe_machine(), "model": shape, "rows": rows_as_json})


if __name__ == "__main__":
    typer.run(main)
