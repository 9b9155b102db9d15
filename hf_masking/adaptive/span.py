"""A window that learns its length."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..masks import FOREVER, Mask, SlidingWindow
from .adaptive_mask import AdaptiveMask, Features, LayerShape

# Lengths are rounded to this many keys where a plan is made: while they are learned, few plans are enough.
GRAIN = 32


@dataclass(frozen=True)
class AdaptiveSpan(AdaptiveMask):
    """Each head learns a span z, up to which it sees everything; behind it the weight falls to 0 along a ramp.

    ``f(i, j) = clip(1 + (z - (i - j)) / ramp, 0, 1)``. It starts with the longest span, so a pretrained model of
    shorter contexts is what it was; a penalty on the spans makes them as short as they can be without harm. Sukhbaatar
    et al., "Adaptive Attention Span in Transformers" (https://arxiv.org/abs/1905.07799).

    Parameters:
        max: the longest span.
        ramp: number of keys over which the weight falls.
        dynamic: the span of a query follows from its hidden state, ``z = max * min(1, 2 sigmoid(v h + b))``, the
            paper's ``max * sigmoid(v h + b)`` made to start with the longest.
    """

    max: int
    ramp: int = 32
    dynamic: bool = False

    name: ClassVar[str] = "span"

    def __post_init__(self) -> None:
        self._require_int("max", 1)
        self._require_int("ramp", 1, FOREVER - self.max)
        if isinstance(self.dynamic, str):
            object.__setattr__(self, "dynamic", {"true": True, "false": False}.get(self.dynamic, self.dynamic))
        self._require("dynamic", isinstance(self.dynamic, bool), "true or false")

    @property
    def envelope(self) -> Mask:
        return SlidingWindow(self.max + self.ramp)

    def module(self, shape: LayerShape) -> nn.Module:
        return _DynamicSpans(self, shape) if self.dynamic else _Spans(self, shape)

    def log_weight(self, query: Tensor | None, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        assert query is not None
        weight = 1 + (query - distance) / self.ramp
        # The trap: log(0) has no gradient that is a number, also where it is then cut off.
        seen = weight > 0
        return torch.where(seen, torch.where(seen, weight, 1.0).clamp(max=1.0).log(), -torch.inf)

    def certain(self, features: Features, heads: slice) -> Mask | None:
        inner = int(self._spans(features, heads).min()) + 1
        return SlidingWindow(inner // GRAIN * GRAIN) if inner >= GRAIN else SlidingWindow(1)

    def reach(self, features: Features, heads: slice) -> Tensor | None:
        outer = self._spans(features, heads).amax(0) + self.ramp
        return (outer / GRAIN).ceil().long() * GRAIN

    def lanes(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        if self.dynamic:
            return range(heads)
        spans = self._spans(features, slice(None))[:, 0].tolist()
        return [(int(z + 1) // GRAIN, -int(-(z + self.ramp) // GRAIN)) for z in spans]

    def reads(self, features: Features) -> Mask:
        if self.dynamic:
            return self.envelope
        longest = float(self._spans(features, slice(None)).max())
        return SlidingWindow(min(int(longest) + self.ramp, self.max + self.ramp))

    @staticmethod
    def _spans(features: Features, heads: slice) -> Tensor:
        """``[h, Q or 1]``, of one row of a batch or over all."""
        assert features.query is not None
        spans = features.query.detach()[..., 0]
        return (spans if spans.ndim == 2 else spans.amax(0))[heads]


class _Spans(nn.Module):
    """A span for each head, as a share of the longest."""

    def __init__(self, mask: AdaptiveSpan, shape: LayerShape) -> None:
        super().__init__()
        self.mask = mask
        self.share = nn.Parameter(torch.ones(shape.query_heads))

    def forward(self, hidden: Tensor) -> Features:
        if self.training and torch.is_grad_enabled():
            # After an optimizer step that went too far: a clamp that is differentiated would hold it there.
            with torch.no_grad():
                self.share.clamp_(0.0, 1.0)
        return Features(self.share.float().clamp(0.0, 1.0)[None, :, None, None] * self.mask.max)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """The mean span, as a share of the longest."""
        assert features.query is not None
        return features.query.mean() / self.mask.max


class _DynamicSpans(nn.Module):
    """A span for each head and query."""

    def __init__(self, mask: AdaptiveSpan, shape: LayerShape) -> None:
        super().__init__()
        self.mask = mask
        self.weight = nn.Parameter(torch.zeros(shape.query_heads, shape.hidden_size))
        self.bias = nn.Parameter(torch.zeros(shape.query_heads))

    def forward(self, hidden: Tensor) -> Features:
        logits = nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())
        shares = (2 * logits.sigmoid()).clamp(max=1.0)
        return Features(shares.mT[..., None] * self.mask.max)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """The mean span, as a share of the longest."""
        assert features.query is not None
        return features.query.mean() / self.mask.max
