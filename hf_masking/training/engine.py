"""Hide the differences of accelerate's engines: one process, DDP (a whole model in each), FSDP2 and DeepSpeed ZeRO."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..modeling import is_learned
from .settings import TrainingSettings

Result = TypeVar("Result")


def on_cpu() -> bool:
    """Return whether there is only a CPU; accelerate must be told, or its processes do not find each other."""
    return not torch.accelerator.is_available()


def start(settings: TrainingSettings, **options: Any) -> Accelerator:
    """Return an `Accelerator` as the launcher asks; raise a ValueError for what accelerate would silently change.

    Parameters:
        options: passed to `Accelerator`.
    """
    if asked_for("MEGATRON_LM"):
        raise ValueError(
            "this loop runs on accelerate's DDP, FSDP2 and DeepSpeed, not on Megatron-LM; launch with --use_fsdp "
            "--fsdp_version 2, which shards weights, gradients and the optimizer's state"
        )
    if asked_for("DEEPSPEED") and on_cpu():
        # Otherwise accelerate, which does not run DeepSpeed on a CPU, would leave each process alone.
        options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(cpu=on_cpu() and not asked_for("DEEPSPEED"), **options)
    settings.check(accelerator.num_processes)
    _check_kind(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, settings, accelerator.num_processes)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerate is set to mixed_precision = {accelerator.mixed_precision}, which this loop does not support; "
            "use bf16, which needs no scaling of the loss (accelerate launch --mixed_precision bf16, or --bf16)"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"accelerate is set to gradient_accumulation_steps = {accelerator.gradient_accumulation_steps}; here "
            "--micro-batch-size splits a step without changing its gradients: leave accelerate's at 1"
        )
    return accelerator


def _check_kind(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if asked_for("FSDP") and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, and accelerate runs {kind.value} in its place, a whole model in every process: it "
            "shards only on accelerators such as GPUs; launch without --use_fsdp, or on a machine that has them"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP version 1 flattens parameters with different learning rates and weight decays; set fsdp_version: 2 "
            "(accelerate launch --use_fsdp --fsdp_version 2)"
        )


def _configure_deepspeed(config: dict[str, Any], settings: TrainingSettings, processes: int) -> None:
    """Put the settings into DeepSpeed's own config; raise a ValueError where it says something else."""
    if settings.bf16:
        raise ValueError(
            "under DeepSpeed --bf16 has no effect, because DeepSpeed has its own autocast; leave it out, and "
            "set mixed_precision: bf16 in accelerate's config"
        )
    if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise ValueError("DeepSpeed without ZeRO is DDP; set zero_stage to 1, 2 or 3, or launch with --multi_gpu")
    # DeepSpeed counts the contexts of each process, also where several share them.
    counted = settings.batch_size * settings.sequence_parallel
    ours = {
        "train_batch_size": counted,
        "train_micro_batch_size_per_gpu": counted // processes,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_gradient_norm,
    }
    for name, value in ours.items():
        if config.get(name, "auto") not in ("auto", value):
            raise ValueError(
                f"DeepSpeed's config has {name} = {config[name]}, and the settings say {value}; leave "
                "it out there, or write 'auto'"
            )
    for name in ("optimizer", "scheduler", "torch_autocast"):
        if name in config:
            raise ValueError(
                f"DeepSpeed's config has a section '{name}', and this loop has its own; leave that section out and "
                "set --learning-rate, --warmup-steps, --weight-decay, and mixed_precision in accelerate's config"
            )
    config.update(ours)
    # The best model is saved with all its weights, in files of --max-shard-size.
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


def together(accelerator: Accelerator, work: Callable[[], Result]) -> list[Result]:
    """Run something in every process and return all results; an error in one of them is raised in all.

    No process is left waiting for one that has failed. Only errors that a user can act on are passed on.
    """
    found: tuple[Any, Exception | None]
    try:
        found = work(), None
    except (ValueError, OSError) as error:
        found = None, error
    everyone = gather_object([found])
    for _, failure in everyone:
        if failure is not None:
            raise failure
    return [result for result, _ in everyone]


def by_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run something in the main process; its result or its error reaches every process."""
    return together(accelerator, work if accelerator.is_main_process else _nothing)[0]


def _nothing() -> Any:
    return None


def asked_for(engine: str) -> bool:
    """Return whether the launcher was told to use an engine: FSDP, DEEPSPEED or MEGATRON_LM."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """Return the model and its optimizer, wrapped by the engine; all processes start from the main one's weights.

    Raises:
        ValueError: the engine would round the parameters of adaptive masks, or take them away between the passes.
    """
    masks_learn = any(is_learned(name) for name, _ in model.named_parameters())
    if masks_learn and _zero_stage(accelerator) == 3:
        raise ValueError(
            "ZeRO-3 removes parameters between the passes, and does not restore those of adaptive masks; set "
            "zero_stage to 2, or use FSDP2"
        )
    if masks_learn and _rounds_weights(accelerator):
        raise ValueError(
            "mixed precision of FSDP or DeepSpeed would round the parameters of adaptive masks to bfloat16, spans of a "
            "thousand tokens to multiples of four; set accelerate's mixed_precision to no, and under FSDP give "
            "--bf16 instead"
        )
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        if not plugin.cpu_ram_efficient_loading:
            # DDP and efficient loading broadcast by themselves; otherwise each process would shard its own weights.
            broadcast(model.to(accelerator.device).state_dict())
    prepared, optimizer = accelerator.prepare(model, optimizer)
    return prepared, optimizer


def signature(accelerator: Accelerator) -> dict[str, Any]:
    """Return what checkpoints depend on: the engine and, for ZeRO, the number of processes.

    Whole models and FSDP's shards can be read by any number of processes.
    """
    if stage := _zero_stage(accelerator):
        return {"engine": f"ZeRO-{stage}", "processes": accelerator.num_processes}
    return {"engine": "FSDP" if accelerator.is_fsdp2 else "DDP"}


def _rounds_weights(accelerator: Accelerator) -> bool:
    """Return whether the engine keeps weights in bfloat16; under DDP autocast rounds only the factors of products."""
    if accelerator.is_fsdp2:
        return accelerator.state.fsdp_plugin.mixed_precision_policy is not None
    return bool(_zero_stage(accelerator)) and accelerator.mixed_precision == "bf16"


def _zero_stage(accelerator: Accelerator) -> int:
    """Return DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return int(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"])


@contextmanager
def part_of_step(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Iterator[None]:
    """Wrap a part of a batch and its backward pass: gradients are exchanged in the last part."""
    if _zero_stage(accelerator):
        # ZeRO steps in its backward pass too, and always exchanges gradients where it shards them.
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
    """Return the autocast of training and evaluation: the same for ``--bf16`` and accelerate's ``mixed_precision``.

    bfloat16 needs no scaling of the loss. Under DeepSpeed the weights themselves are in bfloat16, without autocast.
    """
    enabled = settings.bf16 or (accelerator.mixed_precision == "bf16" and not _zero_stage(accelerator))
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=enabled)


def gathered(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """Return all weights by name in the main process, tied ones once; every process must call this."""
    # ZeRO-3 gives the other processes None.
    state: dict[str, Tensor] = accelerator.get_state_dict(model) or {}
    bare = accelerator.unwrap_model(model)
    once = {name for name, _ in bare.named_parameters()}
    twice = {name for name, _ in bare.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in state.items() if name not in twice}


def random_state(accelerator: Accelerator) -> Tensor:
    """Return the state of the generator that dropout draws from."""
    device = accelerator.device
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def number(value: Tensor | float) -> float:
    """Return a number that may be sharded over the processes."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
