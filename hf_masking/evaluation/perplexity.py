"""Perplexity that two people compute alike: each token scored once, each weighted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling import evaluating, layer_masks


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    perplexity: exp of the mean loss.
    nats_per_token: the mean loss.
    bits_per_byte: the whole loss in bits over the bytes of the text; None if those are not known.
    tokens: how many tokens were scored.
    by_position: mean loss in nats for each number of tokens read before the prediction, less one; None where no token
        was scored at that position of a context.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float | None
    tokens: int
    by_position: tuple[float | None, ...]


@dataclass(frozen=True)
class _Window:
    """Reads ``length`` tokens, the first standing for text position ``start``, and scores its last ``scored``."""

    start: int
    length: int
    scored: int


def perplexity(
    model: nn.Module,
    token_ids: Tensor,
    *,
    context: int,
    stride: int | None = None,
    bos_token_id: int | None = None,
    batch_size: int = 1,
    text_bytes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Perplexity of a text under a causal model, patched or not.

    Windows start at multiples of ``stride``. A window reads ``context`` tokens and predicts the one after each. A
    token is scored in the first window that predicts it: all tokens but the first of the text, or all of them with a
    BOS, which then is the first token that every window reads. The model is evaluated without dropout.

    Parameters:
        token_ids: ``[N]`` integers, the text without special tokens.
        context: tokens that a window reads.
        stride: distance from a window to the next, by default ``context``; smaller gives every token more context.
        bos_token_id: put before every window if given.
        batch_size: windows in a forward pass.
        text_bytes: length of the text in UTF-8, for bits per byte.
        on_progress: called with the number of tokens just scored.

    Raises:
        ValueError: a stride beyond the context, a text shorter than one context, a mask with lookahead.
    """
    stride = context if stride is None else stride
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    _check(model, token_ids, context, stride, bos_token_id)
    if bos_token_id is not None:
        inputs, targets = torch.cat([token_ids.new_tensor([bos_token_id]), token_ids[:-1]]), token_ids
    else:
        inputs, targets = token_ids[:-1], token_ids[1:]
    device = next(model.parameters()).device
    total, counts = torch.zeros(context, dtype=torch.float64), torch.zeros(context, dtype=torch.long)
    with evaluating(model):
        for batch in _batches(_windows(len(targets), context, stride), batch_size):
            losses = _losses(model, batch, inputs, targets, bos_token_id, device)
            first = batch[0].length - batch[0].scored
            total[first : batch[0].length] += losses.double().sum(0).cpu()
            counts[first : batch[0].length] += len(batch)
            if on_progress is not None:
                on_progress(losses.numel())
    return _summary(total, counts, text_bytes)


def _windows(n_targets: int, context: int, stride: int) -> Iterator[_Window]:
    scored_to = 0
    for start in range(0, n_targets, stride):
        end = min(start + context, n_targets)
        yield _Window(start, end - start, end - scored_to)
        scored_to = end
        if end == n_targets:
            return


def _batches(windows: Iterator[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Batches of windows of one shape, so that nothing is padded."""
    for _, alike in groupby(windows, key=lambda window: (window.length, window.scored)):
        group = list(alike)
        yield from (group[first : first + batch_size] for first in range(0, len(group), batch_size))


@torch.no_grad()
def _losses(
    model: nn.Module,
    batch: list[_Window],
    inputs: Tensor,
    targets: Tensor,
    bos_token_id: int | None,
    device: torch.device,
) -> Tensor:
    """Losses in nats, ``[windows, scored]``."""
    length, scored = batch[0].length, batch[0].scored
    columns = torch.tensor([window.start for window in batch])[:, None] + torch.arange(length)
    read = inputs[columns]
    if bos_token_id is not None:
        read[:, 0] = bos_token_id
    logits = model(input_ids=read.to(device), use_cache=False).logits[:, length - scored :]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    wanted = targets[columns[:, length - scored :]].to(device)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(batch), scored)


def _summary(total: Tensor, counts: Tensor, text_bytes: int | None) -> Perplexity:
    nats, tokens = float(total.sum()), int(counts.sum())
    mean = nats / tokens
    by_position = [loss / count if count else None for loss, count in zip(total.tolist(), counts.tolist(), strict=True)]
    bits_per_byte = nats / math.log(2) / text_bytes if text_bytes else None
    # exp overflows a float beyond 709 nats; an untrained model in bfloat16 can get there.
    value = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(value, mean, bits_per_byte, tokens, tuple(by_position))


def refuse_lookahead(model: nn.Module, purpose: str) -> None:
    """Raises a ValueError if a mask of the model looks ahead: each prediction would have seen its answer."""
    masks = layer_masks(model)
    for mask in masks:
        if not mask.is_bound:
            raise ValueError(
                f"mask {mask} sees marked tokens both ways, and a plain text does not say which, so {purpose} is "
                "not defined; use a causal mask, or your own loop with prefix_lengths= or span_ids="
            )
    worst = max(masks, key=lambda mask: mask.lookahead, default=None)
    if worst is not None and worst.lookahead:
        raise ValueError(
            f"mask {worst} looks {worst.lookahead} tokens ahead, so {purpose} would score answers that were seen; "
            "use a causal mask such as block_local:64,1"
        )


def _check(model: nn.Module, token_ids: Tensor, context: int, stride: int, bos_token_id: int | None) -> None:
    if context < 1 or not 1 <= stride <= context:
        raise ValueError(f"expected 1 <= stride <= context, got stride {stride} and context {context}")
    if token_ids.ndim != 1 or token_ids.is_floating_point():
        got = f"{token_ids.dtype} of shape {list(token_ids.shape)}"
        raise ValueError(f"token_ids must be one text, integers of shape [tokens], got {got}")
    needed = context if bos_token_id is not None else context + 1
    if len(token_ids) < needed:
        raise ValueError(
            f"the text has {len(token_ids)} tokens, and one context of {context} needs {needed}; "
            f"use a longer text or a context of at most {len(token_ids) - needed + context}"
        )
    refuse_lookahead(model, "its perplexity")
