"""Declare the settings of a fine-tuning. The command line turns every field into an option."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import FieldError
from ..options import option

MOST = 2**31 - 1  # of whatever is counted: nothing can have more


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a fine-tuning. ``batch_size`` is the number of contexts in a step, over all processes."""

    context: int = option(512, "tokens in a context")
    steps: int = option(200, "optimizer steps")
    batch_size: int = option(8, "contexts in an optimizer step, over all processes")
    micro_batch_size: int | None = option(None, "contexts in one forward pass; by default the whole share of a process")
    sequence_parallel: int = option(1, "processes that share each context, each with a part of it and of its memory")
    learning_rate: float = option(3e-4, "peak learning rate, after the warm-up; a cosine to 0 follows")
    warmup_steps: int = option(20, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's weight decay, for matrices only")
    mask_learning_rate: float = option(1e-2, "peak learning rate of the parameters of adaptive masks")
    mask_penalty: float = option(0.1, "weight in the loss of the share that adaptive masks let through, 0 to 1")
    lora: int | None = option(None, "train low-rank adapters of this rank (PEFT) in place of the weights")
    lora_alpha: float | None = option(
        None, "LoRA alpha: adapters are scaled by alpha / rank; by default twice the rank"
    )
    max_gradient_norm: float = option(1.0, "gradients are clipped to this norm")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass, to save memory")
    bf16: bool = option(False, "compute in bfloat16 and keep the weights in float32")
    seed: int = option(0, "order of the contexts, and dropout")
    eval_every: int = option(50, "steps between evaluations; there is one before training, too")
    checkpoint_every: int = option(50, "steps between checkpoints")
    keep_checkpoints: int = option(2, "number of checkpoints to keep on disk")

    def check(self, processes: int = 1) -> None:
        """Raise a ValueError for settings that cannot run."""
        for name, value in vars(self).items():
            if name != "seed" and isinstance(value, int) and value > MOST:
                raise FieldError(name, f"must be at most {MOST:,}, got {value}")
        counts = ("context", "steps", "batch_size", "sequence_parallel")
        for name in (*counts, "eval_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise FieldError(name, f"must be at least 1, got {getattr(self, name)}")
        for name in ("micro_batch_size", "lora"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise FieldError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.lora is None and self.lora_alpha is not None:
            raise FieldError("lora_alpha", f"goes with lora, got {self.lora_alpha} without it")
        for name in ("learning_rate", "mask_learning_rate", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise FieldError(name, f"must be greater than 0 and finite, got {value}")
        if not self.max_gradient_norm > 0:  # infinity means no clipping
            raise FieldError("max_gradient_norm", f"must be greater than 0, got {self.max_gradient_norm}")
        for name in ("warmup_steps", "weight_decay", "mask_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise FieldError(name, f"must be at least 0 and finite, got {getattr(self, name)}")
        # The range of NumPy; each process adds its index.
        if not 0 <= self.seed <= 2**32 - processes:
            raise FieldError("seed", f"must be from 0 to {2**32 - processes}, got {self.seed}")
        self._check_mesh(processes)

    def _check_mesh(self, processes: int) -> None:
        ranks = self.sequence_parallel
        if processes % ranks:
            raise FieldError(
                "sequence_parallel",
                f"must divide the number of processes, got {ranks} for {processes} process{'es' * (processes > 1)}; "
                f"start them with accelerate launch --num_processes {ranks} scripts/finetune.py",
            )
        if self.context < ranks:
            raise FieldError("context", f"must be at least the {ranks} processes that share it, got {self.context}")
        if self.batch_size % (processes // ranks):
            among = f"{processes} processes" if ranks == 1 else f"{processes // ranks} groups of {ranks} processes"
            raise FieldError(
                "batch_size",
                f"counts all processes and must be a multiple of their number, got {self.batch_size} for {among}",
            )
