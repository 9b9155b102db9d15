"""One row of a comparison: what a mask does to a model, before and after fine-tuning, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation import Perplexity, in_own_process, peak_memory, perplexity, realised_density
from ..modeling import load, patch_model
from .finetune import finetune
from .settings import TrainingSettings


@dataclass(frozen=True)
class Experiment:
    """What all rows share: model, tokens, evaluation windows, batches and seeds.

    tokens: a file that `torch.save` wrote, a dictionary with ``train`` and ``eval`` token ids.
    """

    model: str
    tokens: Path
    settings: TrainingSettings
    stride: int
    bos_token_id: int | None = None
    text_bytes: int | None = None
    layers: Mapping[int, str] = field(default_factory=dict)
    eval_batch_size: int = 4


@dataclass(frozen=True)
class Row:
    """What was measured of a mask; ``error`` says why a row has no numbers."""

    mask: str
    density: float | None = None
    perplexity_patched: float | None = None
    perplexity_finetuned: float | None = None
    bits_per_byte_finetuned: float | None = None
    train_tokens_per_second: float | None = None
    eval_tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    error: str | None = None


def compare(
    experiment: Experiment, masks: Iterable[str], on_record: Callable[[str, dict[str, Any]], None] | None = None
) -> Iterator[Row]:
    """A row for each mask, one after the other, each in a process of its own: its peak memory is its own.

    Parameters:
        on_record: called in that process with the mask and each line of its training log; must be picklable.
    """
    for mask in masks:
        try:
            yield in_own_process(measure, experiment, mask, on_record)
        except BrokenProcessPool:
            yield Row(mask, error="its process was killed (most often: out of memory)")
        except Exception as error:  # whatever it is, its row says so and the others go on
            yield Row(mask, error=next(iter(str(error).splitlines()), type(error).__name__))


def measure(experiment: Experiment, mask: str, on_record: Callable[[str, dict[str, Any]], None] | None = None) -> Row:
    """Patches, evaluates, fine-tunes and evaluates again."""
    started = time.perf_counter()
    torch.manual_seed(experiment.settings.seed)
    tokens = torch.load(experiment.tokens, weights_only=True)
    model = load(experiment.model, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    patch_model(model, mask, layers=experiment.layers)
    # One context warms up; the timed run is the one that counts.
    warm_up = tokens["eval"][: experiment.settings.context + 1]
    _evaluate(model, warm_up, experiment)
    before = time.perf_counter()
    patched = _evaluate(model, tokens["eval"], experiment)
    eval_seconds = time.perf_counter() - before
    tell = None if on_record is None else lambda record: on_record(mask, record)
    trained = finetune(model, tokens["train"], warm_up, experiment.settings, on_record=tell)
    finetuned = _evaluate(model, tokens["eval"], experiment)
    length = experiment.settings.context
    return Row(
        mask=mask,
        density=realised_density(model, tokens["eval"], length),
        perplexity_patched=patched.perplexity,
        perplexity_finetuned=finetuned.perplexity,
        bits_per_byte_finetuned=finetuned.bits_per_byte,
        train_tokens_per_second=trained.tokens_per_second,
        eval_tokens_per_second=patched.tokens / eval_seconds,
        peak_memory_bytes=peak_memory(model.device),
        seconds=time.perf_counter() - started,
    )


def _evaluate(model: Any, token_ids: Tensor, experiment: Experiment) -> Perplexity:
    return perplexity(
        model,
        token_ids,
        context=experiment.settings.context,
        stride=experiment.stride,
        bos_token_id=experiment.bos_token_id,
        batch_size=experiment.eval_batch_size,
        text_bytes=experiment.text_bytes,
    )
