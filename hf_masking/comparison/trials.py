"""Try masks on a model: each mask and seed gets the same batches, in a process of its own."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..evaluation import (
    CacheSize,
    Perplexity,
    Task,
    cache_size,
    in_own_process,
    peak_memory,
    perplexity,
    probe,
    realised_density,
)
from ..modeling import evaluating, load, patch_model
from ..training.loop import finetune
from ..training.settings import TrainingSettings

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Experiment:
    """Hold what all trials share: model, tokens, evaluation windows and training.

    train_ids, eval_ids: token ids as NumPy arrays, which go to another process without a file or shared memory.
    where: arguments of `from_pretrained`, such as the revision.
    settings: of the fine-tuning; every ``eval_every`` steps there is a point of the recovery curve.
    task: of the probe whose questions are asked before and after the fine-tuning, if any.
    """

    model: str
    train_ids: NDArray[np.int64]
    eval_ids: NDArray[np.int64]
    settings: TrainingSettings
    stride: int
    bos_token_id: int | None = None
    text_bytes: int | None = None
    layers: Mapping[int, str] = field(default_factory=dict)
    eval_batch_size: int = 4
    replace_model_window: bool = False
    backend: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    task: Task | None = None

    def load(self) -> PreTrainedModel:
        """Return the model in float32, on the device of the experiment."""
        model = load(self.model, dtype=torch.float32, **self.where)
        model.to(self.device)
        return model

    def patch(self, model: PreTrainedModel, mask: str, *, check: bool = True) -> PreTrainedModel:
        """Patch a model with a mask, and return it."""
        return patch_model(
            model,
            mask,
            layers=self.layers,
            backend=self.backend,
            replace_model_window=self.replace_model_window,
            check=check,
        )


@dataclass(frozen=True)
class Trial:
    """Hold the measurements of a mask under one seed; ``error`` says why there are none.

    recovery: perplexity by steps of fine-tuning; at 0 the model has just been patched.
    by_position: loss in nats after fine-tuning; entry i is for predictions after i + 1 tokens.
    cache_bytes: of a cache that has read one context; full_cache_bytes: of one that retains every key.
    probe_patched, probe_finetuned: share of right answers to the probe before and after fine-tuning.
    """

    mask: str
    seed: int
    density: float | None = None
    recovery: dict[int, float] = field(default_factory=dict)
    by_position: tuple[float | None, ...] = ()
    bits_per_byte: float | None = None
    peak_memory_bytes: int | None = None
    cache_bytes: int | None = None
    full_cache_bytes: int | None = None
    probe_patched: float | None = None
    probe_finetuned: float | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def patched(self) -> float:
        """Return the perplexity before fine-tuning."""
        return self.recovery[0]

    @property
    def finetuned(self) -> float:
        """Return the perplexity after fine-tuning."""
        return self.recovery[max(self.recovery)]


def try_masks(experiment: Experiment, trials: Iterable[tuple[str, int]], tell: Tell | None = None) -> Iterator[Trial]:
    """Try masks under seeds, one after the other, each in its own process, so that peak memory is measured right.

    Parameters:
        tell: called in that process with the mask and each record of its training; must be picklable.
    """
    for mask, seed in trials:
        try:
            yield in_own_process(measure, experiment, mask, seed, tell)
        except BrokenProcessPool:
            yield Trial(mask, seed, error="its process was killed (most often: out of memory)")
        except Exception as error:  # whatever it is, it is reported and the others go on
            yield Trial(mask, seed, error=next(iter(str(error).splitlines()), type(error).__name__))


def measure(experiment: Experiment, mask: str, seed: int, tell: Tell | None = None) -> Trial:
    """Patch the model, evaluate it, fine-tune it and evaluate it again."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    train_ids, eval_ids = torch.from_numpy(experiment.train_ids), torch.from_numpy(experiment.eval_ids)
    model = experiment.patch(experiment.load(), mask)
    settings = replace(experiment.settings, seed=seed)
    evaluations: list[Perplexity] = []

    def evaluate(model: PreTrainedModel, token_ids: Tensor) -> Perplexity:
        evaluations.append(_evaluate(model, token_ids, experiment))
        return evaluations[-1]

    cache = _cache_of_a_context(model, eval_ids[: settings.context])
    probe_patched = _right_answers(model, experiment)
    on_record = None if tell is None else functools.partial(tell, mask)
    trained = finetune(model, train_ids, eval_ids, settings, evaluate=evaluate, on_record=on_record)
    return Trial(
        mask=mask,
        seed=seed,
        density=realised_density(model, eval_ids, settings.context),
        recovery=trained.evaluations,
        by_position=evaluations[-1].by_position,
        bits_per_byte=evaluations[-1].bits_per_byte,
        peak_memory_bytes=peak_memory(model.device),
        cache_bytes=cache.held_bytes,
        full_cache_bytes=cache.full_bytes,
        probe_patched=probe_patched,
        probe_finetuned=_right_answers(model, experiment),
        seconds=time.perf_counter() - started,
    )


def _evaluate(model: PreTrainedModel, token_ids: Tensor, experiment: Experiment) -> Perplexity:
    return perplexity(
        model,
        token_ids,
        context=experiment.settings.context,
        stride=experiment.stride,
        bos_token_id=experiment.bos_token_id,
        batch_size=experiment.eval_batch_size,
        text_bytes=experiment.text_bytes,
    )


def _right_answers(model: PreTrainedModel, experiment: Experiment) -> float | None:
    """Return the share of right answers to the probe, None if there is none; every trial is asked the same."""
    if experiment.task is None:
        return None
    context, bos, batch_size = experiment.settings.context, experiment.bos_token_id, experiment.eval_batch_size
    return probe(model, experiment.task, context=context, bos_token_id=bos, batch_size=batch_size).accuracy


@torch.no_grad()
def _cache_of_a_context(model: PreTrainedModel, token_ids: Tensor) -> CacheSize:
    cache = DynamicCache(config=model.config)
    with evaluating(model):
        # The last token comes alone, as in decoding: keys are evicted when room is made for the next ones.
        model(token_ids[None, :-1].to(model.device), past_key_values=cache, use_cache=True)
        model(token_ids[None, -1:].to(model.device), past_key_values=cache, use_cache=True)
    return cache_size(cache)
