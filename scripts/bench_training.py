"""Benchmark training of a model shaped like GPT-2 small: under a mask, on SDPA, and without attention (the ceiling).

python scripts/bench_training.py --length 8192 --length 16384 --output docs/bench_training.json
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, GPT2Config, GPT2LMHeadModel

from hf_masking import patch_model
from hf_masking.evaluation import in_own_process, peak_memory
from hf_masking.evaluation.loading import silence_libraries
from hf_masking.files import write_json
from hf_masking.machine import describe_machine

MASK = "window:256|sinks:4"
VARIANTS = ("sdpa", "masked", "no attention")


@dataclasses.dataclass(frozen=True)
class Result:
    length: int
    variant: str
    seconds: float
    tokens_per_second: float
    peak_bytes: int


def no_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Let every token attend to itself only, so that attention costs nothing."""
    return value.transpose(1, 2).contiguous(), None


def step(length: int, variant: str, layers: int, width: int, vocabulary: int) -> Result:
    """Time one forward and backward with gradient checkpointing, after a short warm-up."""
    silence_libraries()
    torch.manual_seed(0)
    implementation = "no_attention" if variant == "no attention" else "sdpa"
    AttentionInterface.register("no_attention", no_attention)
    AttentionMaskInterface.register("no_attention", lambda **kwargs: None)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=width // 64,
        vocab_size=vocabulary,
        n_positions=length,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation=implementation,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).train()
    if variant == "masked":
        patch_model(model, MASK)
    # Transformers 5.23 renamed it.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    tokens = torch.randint(vocabulary, (1, length))
    for ids in (tokens[:, :256], tokens):
        started = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        seconds = time.perf_counter() - started
    return Result(length, variant, seconds, length / seconds, peak_memory())


def main(
    length: Annotated[list[int] | None, typer.Option(help="tokens of the context; repeatable")] = None,
    layers: Annotated[int, typer.Option(help="layers of the model")] = 12,
    width: Annotated[int, typer.Option(help="width of the model, a multiple of 64")] = 768,
    vocabulary: Annotated[int, typer.Option(help="size of the vocabulary")] = 50257,
    output: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Measure the tokens/s of a training step with gradient checkpointing."""
    results = []
    for tokens in length or [1024]:
        for variant in VARIANTS:
            results.append(in_own_process(step, tokens, variant, layers, width, vocabulary))
            row = results[-1]
            speed = f"{row.tokens_per_second:,.0f} tokens/s, {row.peak_bytes / 2**30:.1f} GiB"
            typer.echo(f"{tokens:,} tokens, {variant}: {row.seconds:.1f} s, {speed}")
        dense, masked, free = (row.seconds for row in results[-3:])
        typer.echo(f"{MASK}: {dense / masked:.2f}x SDPA, {free / masked:.0%} of the ceiling")
    if output is not None:
        rows = [dataclasses.asdict(row) for row in results]
        model = {"layers": layers, "width": width, "vocabulary": vocabulary, "mask": MASK}
        write_json(output, {"machine": describe_machine(), "model": model, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
