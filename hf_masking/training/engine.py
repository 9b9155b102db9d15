"""What depends on accelerate's engine: one process, several with a whole model each (DDP), or one in pieces (FSDP2)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..modeling import is_learned
from .settings import TrainingSettings


def on_cpu() -> bool:
    """Whether there is nothing but the CPU; accelerate must be told, or its processes do not find each other."""
    return not torch.accelerator.is_available()


def start(settings: TrainingSettings, **options: Any) -> Accelerator:
    """An `Accelerator` as the launcher wants it, or a ValueError for what would quietly become something else.

    Parameters:
        options: handed to `Accelerator`.
    """
    if asked_for("DEEPSPEED") or asked_for("MEGATRON_LM"):
        raise ValueError(
            "this loop runs on accelerate's DDP and FSDP2, not on DeepSpeed or Megatron-LM; launch with --use_fsdp "
            "--fsdp_version 2, which cuts weights, gradients and the optimizer's state into pieces as ZeRO-3 does"
        )
    accelerator = Accelerator(cpu=on_cpu(), **options)
    settings.check(accelerator.num_processes)
    _check_kind(accelerator)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerate is set to mixed_precision = {accelerator.mixed_precision}, which this loop does not do; use "
            "bf16, which needs no scaling of the loss (accelerate launch --mixed_precision bf16, or --bf16)"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"accelerate is set to gradient_accumulation_steps = {accelerator.gradient_accumulation_steps}; here "
            "--micro-batch-size cuts a step, whose gradients do not depend on it: leave accelerate's at 1"
        )
    return accelerator


def _check_kind(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if asked_for("FSDP") and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, and accelerate runs {kind.value} in its place, a whole model in every process: it "
            "shards on GPUs and their like only; launch without --use_fsdp, or where there are some"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP of version 1 joins parameters that have learning rates and decays of their own; set fsdp_version: 2 "
            "(accelerate launch --use_fsdp --fsdp_version 2)"
        )


def asked_for(engine: str) -> bool:
    """Whether the launcher has been told to use an engine: FSDP, DEEPSPEED, MEGATRON_LM."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """The model and its optimizer as the engine wants them; all processes start from the weights of the main one.

    Raises:
        ValueError: what masks learn would be rounded.
    """
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        if plugin.mixed_precision_policy is not None and any(is_learned(name) for name, _ in model.named_parameters()):
            raise ValueError(
                "FSDP's mixed precision would round what masks learn to bfloat16, spans of a thousand tokens to "
                "multiples of four; give --bf16 in its place (and accelerate's mixed_precision: no)"
            )
        if not plugin.cpu_ram_efficient_loading:
            # DDP and efficient loading do so themselves; else each process would keep a piece of weights of its own.
            broadcast(model.to(accelerator.device).state_dict())
    prepared, optimizer = accelerator.prepare(model, optimizer)
    return prepared, optimizer


def precision(accelerator: Accelerator, settings: TrainingSettings) -> AbstractContextManager[None]:
    """bfloat16 means one thing, whether ``--bf16`` or accelerate's ``mixed_precision`` says so, and in evaluation too.

    It needs no scaling of the loss, so autocast is all; accelerate's own switch is once a process.
    """
    enabled = settings.bf16 or accelerator.mixed_precision == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled)


def gathered(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, on the main process; every process must ask. Tied ones are there once."""
    state: dict[str, Tensor] = accelerator.get_state_dict(model)
    bare = accelerator.unwrap_model(model)
    once = {name for name, _ in bare.named_parameters()}
    twice = {name for name, _ in bare.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in state.items() if name not in twice}


def number(value: Tensor) -> float:
    """A number of which every process may hold a part."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
