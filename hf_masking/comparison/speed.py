"""Time training, evaluation and decoding under every mask: interleaved, and each of the three in its own process."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from ..evaluation import in_own_process
from ..evaluation.decoding import seconds_per_token
from ..evaluation.timing import Contender, Timing, interleaved, matrix_product, timed
from ..modeling import sharing_weights
from ..training.optimizer import optimizer_of
from .trials import Experiment

ROUNDS = 5
_MOST_TOKENS = 8192  # in a timed batch, unless a single context is longer
_DECODED = 8  # tokens in a turn

logger = logging.getLogger("hf_masking")
Timings = Mapping[str, Timing]


@dataclass(frozen=True)
class Speeds:
    """The seconds per token of each mask before fine-tuning; masks that could not be timed are left out.

    training: a step of the optimizer on one batch, forward and backward included.
    evaluation: the loss of the same batch.
    decoding: one token, with a cache that holds one context.
    """

    training: Timings = field(default_factory=dict)
    evaluation: Timings = field(default_factory=dict)
    decoding: Timings = field(default_factory=dict)


def speeds(experiment: Experiment, masks: Sequence[str]) -> Speeds:
    """Measure all masks interleaved. Whatever cannot be timed is left out, with a warning."""
    return Speeds(*(_in_own_process(work, experiment, masks) for work in (training, evaluation, decoding)))


def _in_own_process(
    work: Callable[[Experiment, Sequence[str]], Timings], experiment: Experiment, masks: Sequence[str]
) -> Timings:
    try:
        return in_own_process(work, experiment, masks)
    except BrokenProcessPool:
        logger.warning("the process that times %s was killed (most often: out of memory)", work.__name__)
        return {}


def training(experiment: Experiment, masks: Sequence[str]) -> Timings:
    """Time a training step under each mask. All masks share one set of weights and one optimizer, which saves memory.

    The learning rate is 0: with unchanged weights an adaptive mask selects the same pairs in every round.
    """
    models, tokens = _models(experiment, masks), _batch(experiment)
    still = replace(experiment.settings, learning_rate=0.0, mask_learning_rate=0.0)
    optimizer = optimizer_of(nn.ModuleList(models), still)

    def step(model: PreTrainedModel) -> None:
        _loss(model, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), still.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()

    calls = [functools.partial(step, model.train()) for model in models]
    return _timings(experiment, masks, [timed(call, tokens.device, _scored(tokens)) for call in calls])


def evaluation(experiment: Experiment, masks: Sequence[str]) -> Timings:
    """Time the loss of a batch under each mask."""
    models, tokens = _models(experiment, masks), _batch(experiment)

    @torch.no_grad()
    def score(model: PreTrainedModel) -> None:
        _loss(model, tokens)

    calls = [functools.partial(score, model.eval()) for model in models]
    return _timings(experiment, masks, [timed(call, tokens.device, _scored(tokens)) for call in calls])


def decoding(experiment: Experiment, masks: Sequence[str]) -> Timings:
    """Time the decoding of the last tokens of a context under each mask."""
    tokens = _batch(experiment)[:1, :-1]
    return _timings(experiment, masks, [_Decoder(model.eval(), tokens).turn for model in _models(experiment, masks)])


class _Decoder:
    """A model that decodes the last tokens of a context in every turn, and then takes them back."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        self.model = model
        self.steps = max(1, min(_DECODED, tokens.shape[1] // 2))
        self.prompt = tokens[:, : -self.steps]
        self.cache: DynamicCache | None = None

    def turn(self, turn: int) -> float:
        if self.cache is None:
            self.cache = self.filled()
        seconds = seconds_per_token(self.model, self.cache, self.prompt.shape[1], self.steps)
        self.cache.crop(-self.steps)
        return seconds

    @torch.inference_mode()
    def filled(self) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=self.prompt, past_key_values=cache, use_cache=True)
        return cache


def _models(experiment: Experiment, masks: Sequence[str]) -> list[PreTrainedModel]:
    """Return the model under each mask, all with one set of weights."""
    model = experiment.load()
    return [experiment.patch(sharing_weights(model), mask, check=False) for mask in masks]


def _batch(experiment: Experiment) -> Tensor:
    """Return the first contexts of the text, each with the token after it: ``[rows, context + 1]``."""
    width = experiment.settings.context + 1
    rows = min(experiment.settings.batch_size, max(1, _MOST_TOKENS // width), len(experiment.train_ids) // width)
    return torch.from_numpy(experiment.train_ids[: rows * width]).view(rows, width).to(experiment.device)


def _scored(tokens: Tensor) -> int:
    return tokens[:, 1:].numel()


def _loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _timings(experiment: Experiment, masks: Sequence[str], contenders: Sequence[Contender]) -> Timings:
    """Run the contenders, one per mask; leave out those that fail, with a warning."""
    timings = dict(zip(masks, interleaved(contenders, ROUNDS, matrix_product(experiment.device)), strict=True))
    for mask, timing in timings.items():
        if timing.error is not None:
            logger.warning("%s could not be timed: %s", mask, timing.error)
    return {mask: timing for mask, timing in timings.items() if timing.error is None}
