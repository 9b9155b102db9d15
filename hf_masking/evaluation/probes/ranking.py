"""Score the candidates of questions by their likelihood."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .item import Item


@torch.no_grad()
def log_likelihoods(model: nn.Module, items: Sequence[Item]) -> Tensor:
    """Return the log-probability of each candidate after what its question has read, ``[B, Q, C]``.

    Candidates of one token take one forward pass. Those of several tokens read the context once and then continue from
    copies of its cache, so the context is neither computed nor held once per candidate.

    Parameters:
        items: of one shape; the model is in evaluation mode.
    """
    device = next(model.parameters()).device
    token_ids = torch.stack([item.token_ids for item in items]).to(device)
    asked = torch.stack([item.asked for item in items]).to(device)
    candidates = torch.stack([item.candidates for item in items]).to(device)
    several = candidates.shape[-1] > 1
    kept = token_ids.shape[1] - int(asked.min())
    output = model(input_ids=token_ids, use_cache=several, **_keeping(model, kept))
    rows = torch.arange(len(items), device=device)[:, None]
    # Counted from the end: a model that does not know `logits_to_keep` returns all of them.
    after = _log_softmax(output.logits[rows, asked - token_ids.shape[1]])
    first = after.gather(-1, candidates[..., 0])
    return first + _rest(model, output.past_key_values, candidates[:, 0])[:, None] if several else first


def _rest(model: nn.Module, cache: Any, candidates: Tensor) -> Tensor:
    """Return the log-probability of all but the first token of candidates ``[B, C, T]`` after a cache, ``[B, C]``."""
    totals = []
    for candidate in candidates.unbind(1):
        read, wanted = candidate[:, :-1].clamp(min=0), candidate[:, 1:]
        logits = model(input_ids=read, past_key_values=copy.deepcopy(cache), use_cache=True).logits
        each = _log_softmax(logits).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        totals.append(each.masked_fill(wanted < 0, 0).sum(-1))
    return torch.stack(totals, dim=1)


def _log_softmax(logits: Tensor) -> Tensor:
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def _keeping(model: nn.Module, kept: int) -> dict[str, int]:
    """Return the argument with which a model computes only the last logits, if it has one."""
    base = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    return {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
