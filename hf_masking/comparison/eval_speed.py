"""Time the evaluation of a model under every mask, interleaved in one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import torch

from ..evaluation import WindowedText, in_own_process, side_by_side
from ..modeling import sharing_weights
from .trials import Experiment

logger = logging.getLogger("hf_masking")


def eval_speeds(experiment: Experiment, masks: Sequence[str]) -> dict[str, float | None]:
    """Return tokens per second under each mask before fine-tuning; None for a mask that raised an exception.

    If the process is killed, the dictionary is empty and a warning is logged.
    """
    try:
        return in_own_process(measure, experiment, masks)
    except BrokenProcessPool:
        logger.warning("the process that times evaluation was killed (most often: out of memory); no speeds are shown")
        return {}


def measure(experiment: Experiment, masks: Sequence[str]) -> dict[str, float | None]:
    """Load the model once, patch a copy with each mask, and score the held-out text with all of them, interleaved."""
    model = experiment.load()
    models = [experiment.patch(sharing_weights(model), mask, check=False) for mask in masks]
    text = WindowedText(
        torch.from_numpy(experiment.eval_ids),
        experiment.settings.context,
        experiment.stride,
        experiment.bos_token_id,
        experiment.eval_batch_size,
    )
    measured = side_by_side(models, text)
    return {mask: measurement.tokens_per_second for mask, measurement in zip(masks, measured, strict=True)}
