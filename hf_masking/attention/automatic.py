"""Which backend runs under ``backend="auto"``: the cheapest one that can do the job."""

from __future__ import annotations

import functools
import logging

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
) -> str:
    """The name of a backend."""
    if documents.scattered or query.shape[2] == 1:
        _say_once("blockwise", "one query, or keys with gaps, as in decoding")
        return "blockwise"
    if query.device.type == "cuda":
        reason = flex.why_not(mask, documents, query, key, value, dropout=dropout, sink_logits=sink_logits)
        if reason is None:
            return "flex"
        _say_once("blockwise", f"FlexAttention cannot do this: {reason}")
        return "blockwise"
    if dropout or softcap is not None or sink_logits is not None:
        # The dense kernels either lack these or keep all pairs for them.
        return "blockwise"
    gain = 0.0
    for segment in documents.segments:
        for member in mask.heads:
            gain += _dense_minus_sparse(segment.bind(member), segment.lengths)
    name = "blockwise" if gain > 0 else "sdpa"
    _say_once(name, mask)
    return name


@functools.lru_cache(maxsize=1024)
def _dense_minus_sparse(mask: Mask, lengths: Lengths) -> float:
    """What a plan would save against dense attention, for one head."""
    pairs = lengths.queries * lengths.keys
    if pairs <= _FEW_PAIRS:
        return -1.0
    if is_causal(mask, lengths):
        return pairs / 2 * _CAUSAL_COST - plan_of(mask, lengths).cost
    if pairs > _MOST_PAIRS:
        return float("inf")
    return pairs * _DENSE_COST - plan_of(mask, lengths).cost


# Called with what the text is made of: no text is made for a line that has been said.
@functools.lru_cache(maxsize=1024)
def _say_once(name: str, mask: Mask | str) -> None:
    why = mask if isinstance(mask, str) else f"expected to be the faster one for {mask} at such a length"
    logger.info("backend 'auto' runs %r: %s", name, why)
