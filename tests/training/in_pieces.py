"""One of the processes of `test_in_pieces.py`: fine-tuning on FSDP2 or DeepSpeed's ZeRO, on CPUs over gloo."""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from transformers.utils.logging import disable_progress_bar

from hf_masking import patch_model
from hf_masking.training import TrainingSettings, finetune
from hf_masking.training.journal import Journal
from hf_masking.training.process_group import clean_exit

from ..modeling.families import build, tokens

TRAIN, EVAL = tokens(1, 400, seed=1)[0], tokens(1, 100, seed=2)[0]
SETTINGS = TrainingSettings(
    context=16, steps=4, batch_size=8, micro_batch_size=2, learning_rate=3e-3, warmup_steps=1, eval_every=2,
    checkpoint_every=2, max_gradient_norm=0.5,
)  # fmt: skip
ADAPTIVE = "adaptive_span:max=16,ramp=4|sinks:1"
# family, mask, changes of the settings, whether only the main process is taken to have the weights
CASES = {
    "window": ("gpt2", "window:4|sinks:1", {}, True),
    "adaptive": (
        "llama", ADAPTIVE, {"mask_learning_rate": 0.1, "mask_penalty": 1.0, "gradient_checkpointing": True}, False
    ),
    "relevance": ("llama", "relevance&window:12", {"mask_learning_rate": 0.01, "mask_penalty": 1.0}, True),
    "lora": ("llama", ADAPTIVE, {"lora": 2}, True),
    "shards": ("llama", "window:4|sinks:1", {"sequence_parallel": 2, "gradient_checkpointing": True}, True),
}  # fmt: skip


class KilledError(Exception):
    pass


def run(case, folder, seed=0, **more):
    family, mask, changes, _ = CASES[case]
    if "WORLD_SIZE" not in os.environ:
        changes = {name: value for name, value in changes.items() if name != "sequence_parallel"}
    model = patch_model(build(family, seed=seed), mask, check=False)
    result = finetune(model, TRAIN, EVAL, dataclasses.replace(SETTINGS, **changes), output=folder, **more)
    return model, result


@contextlib.contextmanager
def killed_after(steps):
    """Kills every process at once, as a scheduler does."""
    add = Journal.add

    def adds_and_dies(journal, record):
        add(journal, record)
        if record["step"] == steps and "loss" in record:
            raise KilledError

    Journal.add = adds_and_dies
    try:
        yield
    except KilledError:
        pass
    finally:
        Journal.add = add


def start_fsdp(whole_only_in_main):
    """accelerate gives this engine to accelerators only, so its state is told; what then runs is all accelerate's."""
    os.environ |= {  # as `accelerate launch` does
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(whole_only_in_main).lower(),
    }
    state = Accelerator(cpu=True).state
    # Both: a new state takes over what PartialState holds.
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    # A new one each time: it keeps the layer class of the first model that it has seen.
    state.fsdp_plugin = FullyShardedDataParallelPlugin()


def without_compiling():
    """DeepSpeed has an operator for several processes of one CPU, and would compile it for minutes."""
    import deepspeed  # which takes seconds

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def start_zero(stage):
    without_compiling()
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    # A new configuration each time: it holds the sizes of the first model.
    AcceleratorState._reset_state()


ENGINES = {
    "fsdp2": start_fsdp,
    "zero1": lambda _: start_zero(1),
    "zero2": lambda _: start_zero(2),
    "zero3": lambda _: start_zero(3),
}


def cases_of(engine):
    """Masks that learn are refused under ZeRO-3; ZeRO-1 does less than ZeRO-2."""
    return {"zero1": ["window"], "zero3": ["window", "shards"]}.get(engine, list(CASES))


def run_on(engine, case, folder, **more):
    ENGINES[engine](CASES[case][-1])
    # Weights of its own in each process, as from an initialisation without a seed; those of the main one count.
    return run(case, folder, seed=int(os.environ["RANK"]), **more)


def main(engine, folder):
    found = {}
    for case in cases_of(engine):
        model, result = run_on(engine, case, folder / case)
        layers = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        with killed_after(3):
            run_on(engine, case, folder / f"{case}-killed")
        _, again = run_on(engine, case, folder / f"{case}-killed", resume=True)
        found[case] = {"losses": result.losses, "best": result.best, "resumed": again.losses, "layers": layers}
    if PartialState().is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    disable_progress_bar()
    with clean_exit():
        main(sys.argv[1], Path(sys.argv[2]))
