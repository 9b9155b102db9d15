"""The base model fine-tuned under a mask."""

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
    """The held-out loss in nats a token by steps of fine-tuning; at 0 the mask has just been put into the model."""
    model = patch_model(load(str(base_model())), mask, layers=layers)
    trained = finetune(model, train, held_out, settings)
    return {step: math.log(found) for step, found in trained.evaluations.items()}
