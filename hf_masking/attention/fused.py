"""PyTorch's fused attention kernel for CPUs, which also returns the log-sum-exp; no other module calls it.

It is a private operator, so it is tested before it is used; where it is missing or has changed, the block kernel
computes the same in several operations. It has neither dropout nor a soft cap.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .kernel_state import LOG2E


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attend in T tiles: from ``[T, rows, D]`` to ``[T, width, D]``, with an additive bias ``[T, rows, width]``.

    Returns:
        Values ``[T, rows, D]``, and the base-2 log-sum-exp ``[T, rows, 1]``, which is undefined for a row that the bias
        excludes altogether.
    """
    tensors = (x[:, None] for x in (query, key, value))
    mask = None if bias is None else bias[:, None]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *tensors, 0.0, False, attn_mask=mask, scale=scale
    )
    return out[:, 0], lse[:, 0, :, None] * LOG2E


def can_do(query: Tensor, value: Tensor) -> bool:
    """Return whether the kernel can compute tensors like these."""
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and _works(query.dtype)


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Test the kernel on overlapping key slabs, with a row that may attend to nothing."""
    generator = torch.Generator().manual_seed(0)
    query, memory = (torch.randn(2, n, 8, generator=generator, dtype=dtype) for n in (3, 7))
    keys = memory[0].unfold(0, 5, 2).mT
    bias = torch.zeros(2, 3, 5, dtype=dtype)
    bias[:, 0], bias[:, 1, 2:] = -math.inf, -math.inf
    try:
        values, lse = attend(query, keys, keys, bias, 0.5)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    scores = query @ keys.mT * 0.5 + bias
    expected = torch.softmax(scores, -1)[:, 1:] @ keys, scores.logsumexp(-1, keepdim=True)[:, 1:] * LOG2E
    close = [torch.allclose(x[:, 1:], y, atol=1e-4) for x, y in zip((values, lse), expected, strict=True)]
    return all(close) and bool((values[:, 0] == 0).all())
