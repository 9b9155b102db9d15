"""Benchmark sequence parallelism: the bytes that each mask sends, and the peak memory of a training step.

python scripts/bench_sequence_parallel.py --output docs/bench_sequence_parallel.json
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from hf_masking import exchanged_bytes, parse_mask, patch_model, sequence_parallel, shard_batch
from hf_masking.attention import exchange
from hf_masking.evaluation.loading import silence_libraries
from hf_masking.evaluation.memory import peak_memory
from hf_masking.files import write_json
from hf_masking.machine import describe_machine
from hf_masking.plan import Documents
from hf_masking.plan.shards import Shards, Transfers, needed_columns
from hf_masking.training.process_group import clean_exit

MASKS = [
    "causal", "window:256", "window:256|sinks:4", "block_local:256,1", "dilated:64,16|sinks:4", "strided:64|window:64",
    "log_sparse|sinks:4", "block_local:128|summary:128,8",
]  # fmt: skip
STEP_MASK = "window:256|sinks:4"
KEY_HEADS, HEAD_SIZE, DTYPE = 12, 64, torch.float32  # of GPT-2 small
_SCORED = 4096  # tokens whose logits are in memory at once, in every run


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step of a model shaped like GPT-2 small.

    sharded: the processes share weights, gradients and AdamW's state as well (FSDP2).
    backward_layers: stop after the backward pass of so many layers, the last ones; 0 for a whole step. The peak lies
        in the backward pass of the last layer, when the inputs of all layers are held.
    """

    processes: int
    sharded: bool
    tokens: int
    layers: int
    width: int
    vocabulary: int
    backward_layers: int


class EnoughError(Exception):
    """The backward pass has come as far as it should."""


class ScoredInPieces(nn.Module):
    """A language model and its loss, whose logits are made for a few tokens at a time, and again in the backward pass.

    The logits of all tokens would outweigh everything else, and the same in every contender.
    """

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        states = self.model.transformer(input_ids, use_cache=False).last_hidden_state
        total = states.new_zeros(())
        for some, wanted in zip(states.split(_SCORED, 1), labels.split(_SCORED, 1), strict=True):
            piece: Any = checkpoint(self._loss, some, wanted, use_reentrant=False)
            total = total + piece
        return total

    def _loss(self, states: Tensor, labels: Tensor) -> Tensor:
        logits = self.model.lm_head(states).flatten(0, 1)
        return F.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")


def step_of_process(step: Step) -> dict[str, float]:
    """Do one step in this process and return its peak memory and its time."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=step.layers, n_embd=step.width, n_head=step.width // 64, n_positions=step.tokens,
        vocab_size=step.vocabulary, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = patch_model(GPT2LMHeadModel(config).train(), STEP_MASK, check=False)
    model.activation_checkpointing_enable({"use_reentrant": False})
    whole = ScoredInPieces(model)
    if step.sharded:
        mesh = init_device_mesh("cpu", (step.processes,))
        for layer in (*model.transformer.h, model.transformer.wpe, whole):
            fully_shard(layer, mesh=mesh)
    if step.backward_layers:
        model.transformer.h[-1 - step.backward_layers].register_full_backward_pre_hook(_stop)
    optimizer = torch.optim.AdamW(whole.parameters())
    ids = torch.randint(step.vocabulary, (1, step.tokens), generator=torch.Generator().manual_seed(1))
    shard = shard_batch({"input_ids": ids, "labels": ids})
    started = time.perf_counter()
    with sequence_parallel() if step.processes > 1 else nullcontext():
        loss = whole(shard["input_ids"], shard["shift_labels"]) / (step.tokens - 1)
    with suppress(EnoughError):
        loss.backward()
        _finish(step, whole, optimizer)
    total = loss.detach()
    dist.all_reduce(total)
    return {"loss": total.item(), "peak_bytes": peak_memory(), "seconds": time.perf_counter() - started}


def _stop(*_: Any) -> None:
    raise EnoughError


def _finish(step: Step, whole: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Add up the gradients of the processes, unless the engine has, and do the optimizer's step."""
    if not step.sharded and step.processes > 1:
        for parameter in whole.parameters():
            dist.all_reduce(parameter.grad)
    optimizer.step()


def bytes_of_process(tokens: int) -> dict[str, int]:
    """Exchange the keys of one layer under each mask, and return the bytes that were sent."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    shards, documents = Shards.even(tokens, ranks), Documents.single(tokens, tokens)
    key, value = torch.zeros(2, 1, KEY_HEADS, shards.sizes[rank], HEAD_SIZE, dtype=DTYPE)
    sent, group = {}, dist.new_group()
    for mask in MASKS:
        needed = needed_columns(parse_mask(mask), documents, shards)
        with mock.patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as all_to_all:
            exchange(key, value, Transfers.of_rank(needed, shards, rank), group)
        _, rows, *_ = all_to_all.call_args.args
        sent[mask] = rows.nbytes
    return sent


def in_processes(count: int, work: str, **arguments: Any) -> list[dict[str, Any]]:
    """Run a function of this script in so many processes and return what each of them has found."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        subprocess.run(
            [*launcher, __file__, "--work", f"{work} {json.dumps(arguments)}", "--output", folder], check=True
        )
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def process(work: str, folder: Path) -> None:
    """Run this process's part of `in_processes`."""
    name, arguments = work.split(" ", 1)
    with clean_exit():
        dist.init_process_group("gloo")
        given = json.loads(arguments)
        found = step_of_process(Step(**given)) if name == "step" else bytes_of_process(**given)
        (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))


def measured_bytes(tokens: int, ranks: int) -> list[dict[str, Any]]:
    """Return the bytes that the rank which receives the most is sent in one layer, and all ranks together."""
    counted, rows = in_processes(ranks, "bytes", tokens=tokens), []
    for mask in MASKS:
        table = exchanged_bytes(mask, tokens, ranks, key_heads=KEY_HEADS, head_size=HEAD_SIZE, dtype=DTYPE)
        sent = [each[mask] for each in counted]
        rows.append(
            {
                "mask": mask,
                "predicted": list(table.sent),
                "counted": sent,
                "received": list(table.received),
                "all_gather": list(table.all_gather),
                "share": max(table.received) / max(table.all_gather),
            }
        )
        typer.echo(f"{mask}: predicted {sum(table.sent):,} B, counted {sum(sent):,} B, {rows[-1]['share']:.2%} of all")
    return rows


def main(
    work: Annotated[str | None, typer.Option(hidden=True)] = None,
    tokens: Annotated[int, typer.Option(help="tokens of the table of bytes")] = 32_768,
    ranks: Annotated[int, typer.Option(help="processes of the table of bytes")] = 4,
    step_tokens: Annotated[int, typer.Option(help="tokens of the training step")] = 65_536,
    layers: Annotated[int, typer.Option(help="layers of the model")] = 12,
    width: Annotated[int, typer.Option(help="width of the model, a multiple of 64")] = 768,
    vocabulary: Annotated[int, typer.Option(help="tokens of the vocabulary; GPT-2's has 50,257")] = 8192,
    backward_layers: Annotated[int, typer.Option(help="end the step after the backward of so many; 0: all")] = 0,
    output: Annotated[Path | None, typer.Option(help="write the figures to this JSON file")] = None,
) -> None:
    """Measure bytes by mask, and the peak memory of a step in one process and in two."""
    silence_libraries()
    if work is not None:
        assert output is not None
        process(work, output)
        return
    shape = {"key_heads": KEY_HEADS, "head_size": HEAD_SIZE, "dtype": str(DTYPE), "tokens": tokens, "ranks": ranks}
    steps: list[dict[str, Any]] = []
    figures = {
        "machine": describe_machine(),
        "layer": shape,
        "bytes": measured_bytes(tokens, ranks),
        "step_mask": STEP_MASK,
        "steps": steps,
    }
    for processes, sharded in ((1, False), (2, True), (2, False)):
        step = dataclasses.asdict(Step(processes, sharded, step_tokens, layers, width, vocabulary, backward_layers))
        found = in_processes(processes, "step", **step)
        steps.append({**step, "peak_bytes": [each["peak_bytes"] for each in found], **_common(found)})
        typer.echo(f"{processes} processes, sharded {sharded}: {max(steps[-1]['peak_bytes']) / 2**20:,.0f} MiB each")
        if output is not None:  # each time: a step takes many minutes
            write_json(output, figures)


def _common(found: list[dict[str, Any]]) -> dict[str, float]:
    return {"loss": found[0]["loss"], "seconds": max(each["seconds"] for each in found)}


if __name__ == "__main__":
    typer.run(main)
