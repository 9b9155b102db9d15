"""Labels of which the loss must not know the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def labels_for_prefix_lm(
    prefix_lengths: Sequence[int] | Tensor, labels: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Labels ``[B, N]`` with -100 in the prefix of each row and in its padding.

    The tokens of a prefix see each other both ways, so each has seen the answer that it would be asked for.

    Parameters:
        prefix_lengths: number of real tokens in the prefix of each row ``[B]``.
        labels: ``[B, N]``, the input ids as a rule.
        attention_mask: ``[B, N]``, 0 for padding.
    """
    real = torch.ones_like(labels) if attention_mask is None else attention_mask.long()
    lengths = torch.as_tensor(prefix_lengths, device=labels.device)
    if lengths.shape != labels.shape[:1]:
        raise ValueError(f"expected {len(labels)} prefix_lengths, one a row, got {lengths.tolist()}")
    behind = (real > 0) & (real.cumsum(-1) > lengths[:, None])
    return torch.where(behind, labels, -100)
