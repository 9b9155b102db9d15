"""Add the penalty of adaptive masks to the loss of Transformers' `Trainer`, and of trainers derived from it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..modeling import mask_penalties


class MaskPenaltyMixin:
    """Make a `Trainer` class add ``mask_penalty`` times the mean penalty of the adaptive masks to the training loss.

    Name it before the trainer class::

        class PenaltySFTTrainer(MaskPenaltyMixin, SFTTrainer):
            pass

        trainer = PenaltySFTTrainer(model, ..., mask_penalty=0.1)

    A step that accumulates gradients over several batches adds the mean of their penalties. The evaluation loss has no
    penalty. The training loss that the trainer logs includes it.

    Parameters:
        mask_penalty: the weight in the loss of the share that adaptive masks let through, 0 to 1.

    Raises:
        ValueError: ``mask_penalty`` is negative or not finite, or no adaptive mask of the model learns.
    """

    def __init__(self, *args: Any, mask_penalty: float = 0.1, **kwargs: Any) -> None:
        if not 0 <= mask_penalty < math.inf:
            raise ValueError(f"mask_penalty must be at least 0 and finite, got {mask_penalty}")
        self.mask_penalty = mask_penalty
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of the trainer, in training with the penalty; with ``return_outputs`` the outputs too."""
        with mask_penalties() as penalties:
            result = super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if not model.training:
            return result
        penalty = self.mask_penalty * _mean(penalties) / self._batches_to_divide_by(num_items_in_batch)
        return (result[0] + penalty, result[1]) if return_outputs else result + penalty

    def _batches_to_divide_by(self, num_items_in_batch: Tensor | int | None) -> int:
        """Return the number of batches in a step, or 1 where `Trainer.training_step` divides by it.

        It leaves a loss alone that is already divided by the number of labels in the whole step.
        """
        trainer: Any = self
        divided = getattr(trainer, "loss_is_scaled_for_ga", None)  # newer releases of Transformers let trainers set it
        if divided is None:
            by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            divided = by_model or trainer.compute_loss_func is not None
        return int(trainer.current_gradient_accumulation_steps) if divided else 1


class MaskPenaltyTrainer(MaskPenaltyMixin, Trainer):
    """Train with Transformers' `Trainer`, and add ``mask_penalty`` times the penalty of the adaptive masks to the loss.

    Without the penalty masks such as `AdaptiveSpan` and `Relevance` learn to let everything through::

        patch_model(model, "adaptive_span:max=1024|sinks:4")
        MaskPenaltyTrainer(model, arguments, train_dataset=dataset, mask_penalty=0.1).train()

    All other parameters are those of `Trainer`. `MaskPenaltyMixin` does the same for other trainers.
    """


def _mean(penalties: list[Tensor]) -> Tensor:
    if not penalties:
        raise ValueError(
            "mask_penalty needs an adaptive mask that learns, and no layer of the model reported a penalty; patch it "
            "with one such as adaptive_span:max=512, or use Trainer itself (PEFT freezes what it does not know: see "
            "modules_to_save; reentrant gradient checkpointing turns penalties off)"
        )
    return torch.stack(penalties).mean()
