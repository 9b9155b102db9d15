"""Make labels for training on prompts and answers: -100 for the tokens that are not to be learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def labels_for_prefix_lm(
    prefix_lengths: Sequence[int] | Tensor, labels: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return labels ``[B, N]`` with -100 in the prefix of each row and in its padding.

    The tokens of a prefix attend to each other bidirectionally, so each has seen the token that it would predict.

    Parameters:
        prefix_lengths: number of real tokens in the prefix of each row ``[B]``.
        labels: ``[B, N]``, usually the input ids.
        attention_mask: ``[B, N]``, 0 for padding.
    """
    return _after("prefix_lengths", prefix_lengths, labels, attention_mask)


def labels_for_prompt(
    prompt_lengths: Sequence[int] | Tensor, labels: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Return labels ``[B, N]`` with -100 in the prompt of each row and in its padding: only answers are learned.

    Under a causal mask that is a choice, and not a necessity as for `labels_for_prefix_lm`.

    Parameters:
        prompt_lengths: number of real tokens in the prompt of each row ``[B]``, as a patched model takes them.
        labels: ``[B, N]``, usually the input ids.
        attention_mask: ``[B, N]``, 0 for padding.

    Raises:
        ValueError: not one length per row.
    """
    return _after("prompt_lengths", prompt_lengths, labels, attention_mask)


def _after(name: str, lengths: Sequence[int] | Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return labels with -100 for the first real tokens of each row and for padding."""
    real = torch.ones_like(labels) if attention_mask is None else attention_mask.long()
    lengths = torch.as_tensor(lengths, device=labels.device)
    if lengths.shape != labels.shape[:1]:
        raise ValueError(f"expected {len(labels)} {name}, one per row, got {lengths.tolist()}")
    return torch.where((real > 0) & (real.cumsum(-1) > lengths[:, None]), labels, -100)
