"""What depends on accelerate's engine: one process, several with a whole model each (DDP), or one in pieces.

FSDP2 and DeepSpeed's ZeRO do the latter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, broadcast
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
    if asked_for("MEGATRON_LM"):
        raise ValueError(
            "this loop runs on accelerate's DDP, FSDP2 and DeepSpeed, not on Megatron-LM; launch with --use_fsdp "
            "--fsdp_version 2, which cuts weights, gradients and the optimizer's state into pieces"
        )
    if asked_for("DEEPSPEED") and on_cpu():
        # Else accelerate, which does not take DeepSpeed to a CPU that it knows of, would leave each process alone.
        options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(cpu=on_cpu() and not asked_for("DEEPSPEED"), **options)
    settings.check(accelerator.num_processes)
    _check_kind(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, settings, accelerator.num_processes)
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


def _configure_deepspeed(config: dict[str, Any], settings: TrainingSettings, processes: int) -> None:
    """DeepSpeed clips and counts by a config of its own, which must say what the settings say."""
    ours = {
        "train_micro_batch_size_per_gpu": settings.batch_size // processes,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_gradient_norm,
    }
    for name, value in ours.items():
        if config.get(name, "auto") not in ("auto", value):
            raise ValueError(
                f"DeepSpeed's config has {name} = {config[name]}, and the settings make it {value}; leave "
                "it out there, or write 'auto'"
            )
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise ValueError(
                f"DeepSpeed's config has a section '{name}', and this loop brings its own; leave that section out and "
                "set --learning-rate, --warmup-steps and --weight-decay"
            )
    config.update(ours)
    # The best model is saved whole, in one piece or --max-shard-size.
    config.setdefault("zero_optimization", {})["stage3_gather_16bit_weights_on_model_save"] = True


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
    if _rounds_weights(accelerator) and any(is_learned(name) for name, _ in model.named_parameters()):
        raise ValueError(
            "mixed precision of FSDP or DeepSpeed would round what masks learn to bfloat16, spans of a thousand tokens "
            "to multiples of four; give --bf16 in its place (and accelerate's mixed_precision: no)"
        )
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        if not plugin.cpu_ram_efficient_loading:
            # DDP and efficient loading do so themselves; else each process would keep a piece of weights of its own.
            broadcast(model.to(accelerator.device).state_dict())
    prepared, optimizer = accelerator.prepare(model, optimizer)
    return prepared, optimizer


def _rounds_weights(accelerator: Accelerator) -> bool:
    """Whether the engine computes with weights in bfloat16, where DDP has autocast round what is multiplied."""
    if accelerator.is_fsdp2:
        return accelerator.state.fsdp_plugin.mixed_precision_policy is not None
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.mixed_precision == "bf16")


@contextmanager
def part_of_step(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Iterator[None]:
    """Around a part of a batch and its backward pass: gradients are exchanged with the last part."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Whose backward pass steps as well, and which cannot be kept from exchanging where it cuts gradients.
        accelerator.sync_gradients = is_last
        try:
            yield
        finally:
            accelerator.sync_gradients = True
    elif is_last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def precision(accelerator: Accelerator, settings: TrainingSettings) -> AbstractContextManager[None]:
    """bfloat16 means one thing, whether ``--bf16`` or accelerate's ``mixed_precision`` says so, and in evaluation too.

    It needs no scaling of the loss, so autocast is all; accelerate's own switch is once a process.
    """
    enabled = settings.bf16 or accelerator.mixed_precision == "bf16"
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled)


def gathered(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, on the main process; every process must ask. Tied ones are there once."""
    # ZeRO-3 gives the other processes None.
    state: dict[str, Tensor] = accelerator.get_state_dict(model) or {}
    bare = accelerator.unwrap_model(model)
    once = {name for name, _ in bare.named_parameters()}
    twice = {name for name, _ in bare.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in state.items() if name not in twice}


def number(value: Tensor | float) -> float:
    """A number of which every process may hold a part."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
