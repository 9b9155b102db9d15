"""Fine-tune the base model under a mask."""

from __future__ import annotations

import math

from base import base_model
from torch import Tensor

from hf_masking import patch_model
from hf_masking.modeling import load
from hf_masking.training import TrainingSettings, finetune


def tuned(
    mask: str, settings: TrainingSettings, train: Tensor, held_out: Tensor, layers: dict[int, str] | None = None
) -> dict[int, float]:
    """Return the held-out loss in nats per token by steps of fine-tuning; at 0 the model has just been patched."""
    model = patch_model(load(str(base_model())), mask, layers=layers)
    trained = finetune(model, train, held_out, settings)
    return {step: math.log(found) for step, found in trained.evaluations.items()}
