"""Which backend runs under ``backend="auto"``: the cheapest one that can do the job."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from ..masks import Mask
from ..plan import Documents, Lengths, is_causal, plan_of
from . import flex

logger = logging.getLogger("hf_masking")

# Forward and backward of dense attention, in the unit of a plan's cost: a pair of a block of 64 rows. Measured on a
# CPU by `hf-masking bench --preset break-even`; docs/break-even.json holds the figures.
_CAUSAL_COST = 0.57  # for each pair of the triangle
_DENSE_COST = 0.60  # for each pair of the rectangle, allowed or not
# Fewer pairs than this are dense without asking what a plan would cost; decoding is.
_FEW_PAIRS = 2**14
# No dense mask is made that is larger than this, whatever it would save.
_MOST_PAIRS = 2**22


@torch.compiler.disable
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
    if query.device.type == "cuda":
        reason = flex.why_not(documents, query, key, value, dropout=dropout, sink_logits=sink_logits)
        if reason is None:
            return "flex"
        _say_once(f"backend 'auto' runs 'blockwise' on CUDA, not 'flex': {reason}")
        return "blockwise"
    if dropout or softcap is not None or sink_logits is not None:
        # The dense kernels either lack these or keep all pairs for them.
        return "blockwise"
    costs = [_costs(member, segment.lengths) for member in mask.heads for segment in documents.segments]
    name = "sdpa" if sum(dense for dense, _ in costs) <= sum(sparse for _, sparse in costs) else "blockwise"
    _say_once(f"backend 'auto' runs {name!r} for {mask} over {key.shape[2]} keys, which it expects to be faster")
    return name


@functools.lru_cache(maxsize=1024)
def _costs(mask: Mask, lengths: Lengths) -> tuple[float, float]:
    """What dense attention and what a plan would cost, for one head."""
    pairs = lengths.queries * lengths.keys
    if pairs <= _FEW_PAIRS:
        return 0.0, 1.0
    if is_causal(mask, lengths):
        return pairs / 2 * _CAUSAL_COST, plan_of(mask, lengths).cost
    dense = pairs * _DENSE_COST if pairs <= _MOST_PAIRS else float("inf")
    return dense, plan_of(mask, lengths).cost


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
