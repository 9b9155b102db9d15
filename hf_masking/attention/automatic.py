"""Which backend runs under ``backend="auto"``: the cheapest one that can do the job."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

from torch import Tensor

from ..masks import Mask
from ..plan import Documents, Lengths, is_causal, plan_of
from . import flex

logger = logging.getLogger("hf_masking")

# Forward and backward of dense attention, in the unit of a plan's cost: a pair of a block of 64 rows. From the times of
# `hf-masking bench --preset readme` on a CPU (docs/bench.json), which also measures both sides of the break-even.
_CAUSAL_COST = 0.57  # for each pair of the triangle
_DENSE_COST = 0.60  # for each pair of the rectangle, allowed or not
# Fewer pairs than this are dense without asking what a plan would cost.
_FEW_PAIRS = 2**14
# No dense mask is made that is larger than this, whatever it would save.
_MOST_PAIRS = 2**22


class Choice(NamedTuple):
    """A backend, and why it runs."""

    backend: str
    reason: str


def choose(
    mask: Mask,
    documents: Documents,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Choice:
    """Return the backend that is expected to be the fastest of those that can do this."""
    if documents.scattered:
        return Choice("gathered", "the positions of the keys have gaps, as in a cache that has evicted keys")
    if query.shape[2] == 1:
        return Choice("gathered", "a single query, as in decoding")
    if mask.is_adaptive:
        return Choice("blockwise", "the mask is adaptive")
    if query.device.type == "cuda":
        reason = flex.why_not(mask, documents, query, key, value, dropout=dropout, sink_logits=sink_logits)
        if reason is None:
            return Choice("flex", "on CUDA")
        return Choice("blockwise", f"FlexAttention cannot do this: {reason}")
    # The dense kernels either lack these or keep all pairs for them.
    asked = {"dropout": dropout > 0, "softcap": softcap is not None, "sink_logits": sink_logits is not None}
    if any(asked.values()):
        return Choice("blockwise", f"it computes {' and '.join(name for name in asked if asked[name])} in blocks")
    estimates = [
        _estimate(segment.bind(member), segment.lengths) for segment in documents.segments for member in mask.heads
    ]
    if sum(estimate.gain for estimate in estimates) > 0:
        return Choice("blockwise", "expected to be faster than dense attention at such a length")
    return Choice("sdpa", min(estimates, default=_Estimate(0.0, "nothing but padding")).reason)


def few_pairs(n_queries: int, n_keys: int) -> bool:
    """Return whether there are so few that dense attention is taken without asking what a plan would cost."""
    return n_queries == 1 or n_queries * n_keys <= _FEW_PAIRS


class _Estimate(NamedTuple):
    """What a plan would save against dense attention, for one head, and what speaks for dense attention."""

    gain: float
    reason: str


@functools.lru_cache(maxsize=1024)
def _estimate(mask: Mask, lengths: Lengths) -> _Estimate:
    pairs = lengths.queries * lengths.keys
    if pairs <= _FEW_PAIRS:
        return _Estimate(-1.0, f"dense attention is faster for so few pairs (up to {_FEW_PAIRS:,})")
    if is_causal(mask, lengths):
        gain = pairs / 2 * _CAUSAL_COST - plan_of(mask, lengths).cost
        return _Estimate(gain, "the mask is all of causal at such a length")
    reason = "dense attention is expected to be faster at such a length"
    if pairs > _MOST_PAIRS:
        return _Estimate(float("inf"), reason)
    return _Estimate(pairs * _DENSE_COST - plan_of(mask, lengths).cost, reason)


def log(choice: Choice, mask: Mask) -> None:
    """Log a choice once per mask and reason."""
    _log_once(choice, mask)


@functools.lru_cache(maxsize=1024)
def _log_once(choice: Choice, mask: Mask) -> None:
    logger.info("backend 'auto' runs %r for '%s': %s", choice.backend, mask, choice.reason)
