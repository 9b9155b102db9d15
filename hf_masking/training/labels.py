"""Make labels for prefix-LM training: -100 inside the prefix."""

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
    real = torch.ones_like(labels) if attention_mask is None else attention_mask.long()
    lengths = torch.as_tensor(prefix_lengths, device=labels.device)
    if lengths.shape != labels.shape[:1]:
        raise ValueError(f"expected {len(labels)} prefix_lengths, one per row, got {lengths.tolist()}")
    after_prefix = (real > 0) & (real.cumsum(-1) > lengths[:, None])
    return torch.where(after_prefix, labels, -100)
