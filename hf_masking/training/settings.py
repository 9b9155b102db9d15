"""What can be chosen about a fine-tuning. The command line makes an option of every field."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is fine-tuned. ``batch_size`` counts contexts in one optimizer step, over all processes."""

    context: int = option(512, "tokens in a context")
    steps: int = option(200, "optimizer steps")
    batch_size: int = option(8, "contexts in an optimizer step, over all processes")
    micro_batch_size: int | None = option(None, "contexts in one forward pass; by default all of a process")
    learning_rate: float = option(3e-4, "highest learning rate, after the warm-up; it falls as a cosine to 0")
    warmup_steps: int = option(20, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's weight decay, for matrices only")
    mask_learning_rate: float = option(1e-2, "highest learning rate of what masks learn (spans, relevance)")
    mask_penalty: float = option(0.1, "weight in the loss of the share that such masks let through, 0 to 1")
    lora: int | None = option(None, "train low-rank adapters of this rank (PEFT) in place of the weights")
    lora_alpha: float | None = option(
        None, "what adapters add is scaled by this over their rank; by default twice the rank"
    )
    max_gradient_norm: float = option(1.0, "gradients are clipped to this norm")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass, to save memory")
    bf16: bool = option(False, "compute in bfloat16, keep the weights in float32")
    seed: int = option(0, "order of the contexts, and dropout")
    eval_every: int = option(50, "steps from one evaluation to the next")
    checkpoint_every: int = option(50, "steps from one checkpoint to the next")
    keep_checkpoints: int = option(2, "how many checkpoints stay on disk")

    def check(self, processes: int = 1) -> None:
        """Raises a ValueError for what cannot be run."""
        for name in ("context", "steps", "batch_size", "eval_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("micro_batch_size", "lora"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lora is None and self.lora_alpha is not None:
            raise ValueError(f"lora_alpha goes with lora, got {self.lora_alpha} without it")
        for name in ("learning_rate", "mask_learning_rate", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be greater than 0 and finite, got {value}")
        if not self.max_gradient_norm > 0:  # infinity leaves gradients as they are
            raise ValueError(f"max_gradient_norm must be greater than 0, got {self.max_gradient_norm}")
        for name in ("warmup_steps", "weight_decay", "mask_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        # What NumPy takes; each process adds its number.
        if not 0 <= self.seed <= 2**32 - processes:
            raise ValueError(f"seed must be from 0 to {2**32 - processes}, got {self.seed}")
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size counts all processes and must be a multiple of their number, got {self.batch_size} "
                f"for {processes} processes"
            )
