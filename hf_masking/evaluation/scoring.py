"""Cut a text into windows, score each token once, and add up the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ..errors import FieldError
from ..modeling import losses_in_shards

MOST = 2**31 - 1  # rows of a batch


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a model on a text.

    perplexity: exp of the mean loss.
    nats_per_token: the mean loss.
    bits_per_byte: the total loss in bits over the bytes of the text; None if their number is not known.
    tokens: number of scored tokens.
    by_position: mean loss in nats at each position of a context; entry i is for predictions after i + 1 tokens, None
        where no token was scored.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float | None
    tokens: int
    by_position: tuple[float | None, ...]


@dataclass(frozen=True)
class Window:
    """A window that reads ``length`` tokens from position ``start`` and scores the last ``scored`` predictions."""

    start: int
    length: int
    scored: int


class WindowedText:
    """A text cut into windows.

    Parameters:
        token_ids: ``[N]`` integers, the text without special tokens.
        context: tokens that a window reads.
        stride: distance from a window to the next, by default ``context``.
        bos_token_id: put before every window if given.
        batch_size: windows in a forward pass.

    Raises:
        ValueError: a stride greater than the context, or a text shorter than one context.
    """

    def __init__(
        self, token_ids: Tensor, context: int, stride: int | None, bos_token_id: int | None, batch_size: int
    ) -> None:
        self.context, self.stride = context, context if stride is None else stride
        self.bos_token_id, self.batch_size = bos_token_id, batch_size
        _check(token_ids, self.context, self.stride, bos_token_id, batch_size)
        if bos_token_id is not None:
            self.inputs, self.targets = torch.cat([token_ids.new_tensor([bos_token_id]), token_ids[:-1]]), token_ids
        else:
            self.inputs, self.targets = token_ids[:-1], token_ids[1:]

    def batches(self) -> Iterator[list[Window]]:
        """Yield batches of windows of one shape, so that nothing is padded."""
        for _, alike in groupby(self._windows(), key=lambda window: (window.length, window.scored)):
            group = list(alike)
            yield from (group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size))

    def _windows(self) -> Iterator[Window]:
        scored_to = 0
        for start in range(0, len(self.targets), self.stride):
            end = min(start + self.context, len(self.targets))
            yield Window(start, end - start, end - scored_to)
            scored_to = end
            if end == len(self.targets):
                return

    @torch.no_grad()
    def losses(self, model: nn.Module, batch: list[Window], group: ProcessGroup | None = None) -> Tensor:
        """Return the losses in nats, ``[windows, scored]``, of a model in evaluation mode.

        Parameters:
            group: the processes that share each window; None if each computes all of it.
        """
        device = next(model.parameters()).device
        length, scored = batch[0].length, batch[0].scored
        columns = torch.tensor([window.start for window in batch])[:, None] + torch.arange(length)
        read = self.inputs[columns]
        if self.bos_token_id is not None:
            read[:, 0] = self.bos_token_id
        if group is not None and length >= group.size():
            losses = losses_in_shards(model, read.to(device), self.targets[columns].to(device), group)
            return losses[:, length - scored :]
        logits = model(input_ids=read.to(device), use_cache=False).logits[:, length - scored :]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        wanted = self.targets[columns[:, length - scored :]].to(device)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(batch), scored)


class Tally:
    """The sum of a model's losses so far, by position in the context."""

    def __init__(self, context: int) -> None:
        self.total = torch.zeros(context, dtype=torch.float64)
        self.counts = torch.zeros(context, dtype=torch.long)

    def add(self, batch: list[Window], losses: Tensor) -> None:
        """Add the losses of a batch."""
        length, scored = batch[0].length, batch[0].scored
        self.total[length - scored : length] += losses.double().sum(0).cpu()
        self.counts[length - scored : length] += len(batch)

    def result(self, text_bytes: int | None) -> Perplexity:
        """Return the perplexity of all losses so far."""
        nats, tokens = float(self.total.sum()), int(self.counts.sum())
        mean = nats / tokens
        sums = zip(self.total.tolist(), self.counts.tolist(), strict=True)
        by_position = tuple(loss / count if count else None for loss, count in sums)
        bits_per_byte = nats / math.log(2) / text_bytes if text_bytes else None
        # exp overflows above 709 nats, which an untrained model in bfloat16 can reach.
        return Perplexity(math.exp(mean) if mean < 700 else math.inf, mean, bits_per_byte, tokens, by_position)


def _check(token_ids: Tensor, context: int, stride: int, bos_token_id: int | None, batch_size: int) -> None:
    if batch_size < 1:
        raise FieldError("batch_size", f"must be at least 1, got {batch_size}")
    if batch_size > MOST:
        raise FieldError("batch_size", f"must be at most {MOST:,}, got {batch_size}")
    if context < 1:
        raise FieldError("context", f"must be at least 1, got {context}")
    if not 1 <= stride <= context:
        raise FieldError("stride", f"must be from 1 to the context, which is {context}, got {stride}")
    if token_ids.ndim != 1 or token_ids.is_floating_point():
        got = f"{token_ids.dtype} of shape {list(token_ids.shape)}"
        raise ValueError(f"token_ids must be one text, integers of shape [tokens], got {got}")
    needed = context if bos_token_id is not None else context + 1
    if len(token_ids) < needed:
        longest = len(token_ids) - needed + context
        remedy = f"use a longer text or a context of at most {longest}" if longest > 0 else "use a longer text"
        raise ValueError(f"the text has {len(token_ids)} tokens, and one context of {context} needs {needed}; {remedy}")
