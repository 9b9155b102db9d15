"""Probe a model: draw the questions of a task, let the model rank the candidates, count by distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...modeling import check_fits, evaluating
from ..perplexity import refuse_lookahead
from .item import Item, Task
from .questions import Questions
from .ranking import log_likelihoods


@dataclass(frozen=True)
class AtDistance:
    """The share of right answers to the questions at one distance, and its binomial standard error."""

    distance: int
    accuracy: float
    standard_error: float
    questions: int


@dataclass(frozen=True)
class ProbeResult:
    """The right answers of a model.

    accuracy: share of the questions whose right answer was the likeliest candidate.
    standard_error: of the accuracy, binomial.
    chance: 1 / number of candidates.
    control: the accuracy against the answers to other questions, which must be near chance.
    questions: number of questions.
    by_distance: the accuracy at each distance, the nearest first.
    """

    accuracy: float
    standard_error: float
    chance: float
    control: float
    questions: int
    by_distance: tuple[AtDistance, ...]


def probe(
    model: nn.Module,
    task: Task,
    *,
    context: int,
    distances: Sequence[int] | None = None,
    questions: int = 64,
    seed: int = 0,
    bos_token_id: int | None = None,
    batch_size: int = 4,
    on_progress: Callable[[int], None] | None = None,
) -> ProbeResult:
    """Return how often a causal model, patched or not, finds an answer, by its distance in the context.

    Nothing is generated: of the candidates for an answer the one with the greatest likelihood counts. The model is
    evaluated without dropout.

    Parameters:
        task: what is asked: `probe_task(name, tokenizer)`; `Recall(token_ids)` or `Copy(token_ids)` without a
            tokenizer; or one of your own, see `hf_masking.evaluation.Task`.
        context: tokens that the model reads, the BOS token and the answers included.
        distances: tokens from a question back to its answer; by default spaced logarithmically over the context.
        questions: number of questions at each distance, at least.
        seed: of the questions: with the same one, all models and masks are asked the same.
        bos_token_id: put before every context if given.
        batch_size: contexts in a forward pass.
        on_progress: called with the number of questions just answered.

    Raises:
        ValueError: a context too short for the task or longer than the model's positions, a distance that it has no
            room for, too few tokens to choose from, or a mask with lookahead.
    """
    asked = Questions(task, context, distances=distances, questions=questions, seed=seed, bos_token_id=bos_token_id)
    check_readable(model, asked)
    return answer(model, asked, batch_size=batch_size, on_progress=on_progress)


def check_readable(model: nn.Module, questions: Questions) -> None:
    """Raise a ValueError if a model cannot read the questions, or would see the answers."""
    _check_fits(model, questions.first_round, questions.context)
    refuse_lookahead(model, "the accuracy of a probe")


def answer(
    model: nn.Module,
    questions: Questions,
    *,
    batch_size: int = 4,
    on_progress: Callable[[int], None] | None = None,
) -> ProbeResult:
    """Let a model answer questions; the parameters are those of `probe`."""
    items, chosen = [], []
    with evaluating(model):
        for batch in questions.batches(batch_size):
            _check_fits(model, batch, questions.context)
            chosen.append(log_likelihoods(model, batch).argmax(-1).flatten().cpu())
            items += [(item.right, item.distances) for item in batch]
            if on_progress is not None:
                on_progress(len(chosen[-1]))
    right, distances = (torch.cat(parts) for parts in zip(*items, strict=True))
    return _result(torch.cat(chosen), right, distances, questions.first_round[0].candidates.shape[1])


def _check_fits(model: nn.Module, items: Sequence[Item], context: int) -> None:
    check_fits(model, torch.cat([torch.cat([item.token_ids, item.candidates.flatten()]) for item in items]), context)


def _result(chosen: Tensor, right: Tensor, distances: Tensor, candidates: int) -> ProbeResult:
    found = chosen == right
    shuffled = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))]
    by_distance = []
    for distance in distances.unique().tolist():
        there = found[distances == distance]
        by_distance.append(AtDistance(distance, *_share(there), len(there)))
    control, _ = _share(chosen == shuffled)
    return ProbeResult(*_share(found), 1 / candidates, control, len(found), tuple(by_distance))


def _share(found: Tensor) -> tuple[float, float]:
    """Return the share of true values, and its binomial standard error."""
    share = float(found.double().mean())
    return share, math.sqrt(share * (1 - share) / len(found))
