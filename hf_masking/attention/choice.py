"""Choose a backend for ``backend="auto"``, by rules that are tried in order. A rule for a new backend goes here."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

from ..masks import MaskExpression
from ..plan import DocumentMask
from ..plan.cost_model import CAUSAL_PAIR, DENSE_PAIR
from .backends import why_not
from .inputs import Inputs, Options

logger = logging.getLogger("hf_masking")

# Up to this many pairs attention is dense, and no plan is made to compare it with.
_FEW_PAIRS = 2**14
# No dense mask is larger than this, however fast it would be.
_MOST_PAIRS = 2**22


class Choice(NamedTuple):
    """A backend, and why it runs. The plans that were made to choose it stay with the inputs, where it finds them."""

    backend: str
    reason: str


def choose(inputs: Inputs) -> Choice:
    """Return the backend of the first rule that fits; the last one compares the expected times of two backends."""
    if inputs.documents.scattered:
        return Choice("gathered", "the positions of the keys have gaps, as in a cache that has evicted keys")
    if inputs.query.shape[2] == 1:
        return Choice("gathered", "a single query, as in decoding")
    if inputs.mask.is_adaptive:
        return Choice("blockwise", "the mask is adaptive")
    if inputs.query.device.type == "cuda":
        reason = why_not("flex", inputs)
        return Choice("flex", "on CUDA") if reason is None else Choice("blockwise", f"not FlexAttention: {reason}")
    # Dense kernels either lack these or hold all pairs for them.
    if options := inputs.options.needed:
        return Choice("blockwise", f"it computes {' and '.join(options)} in blocks")
    estimates = [_estimate(document_mask) for document_mask in inputs.document_masks]
    if sum(estimate.gain for estimate in estimates) > 0:
        return Choice("blockwise", "expected to be faster than dense attention at this length")
    return Choice("sdpa", min(estimates, default=_Estimate(0.0, "nothing but padding")).reason)


def choose_in_graph(
    n_queries: int, n_keys: int, options: Options, *, needs_gradients: bool, device: str
) -> Choice | None:
    """Return the backend for a compiled graph, where the values of tensors are unknown.

    None if the choice can wait until the graph runs: `choose` makes it then.
    """
    if n_queries == 1 or n_queries * n_keys <= _FEW_PAIRS:
        backend = "sdpa" if options.softcap is None and options.sink_logits is None else "reference"
        return Choice(backend, "a compiled graph computes a single query, or so few pairs, densely")
    if (needs_gradients or options.dropout) and device != "cuda":
        return Choice("blockwise", "a compiled graph has gradients and dropout of this backend only")
    return None


class _Estimate(NamedTuple):
    """The time that a plan saves over dense attention, for one head, and the reason for dense attention."""

    gain: float
    reason: str


def _estimate(document_mask: DocumentMask) -> _Estimate:
    pairs = document_mask.lengths.queries * document_mask.lengths.keys
    if pairs <= _FEW_PAIRS:
        return _Estimate(-1.0, f"dense attention is faster for so few pairs (up to {_FEW_PAIRS:,})")
    if document_mask.is_causal:
        gain = pairs / 2 * CAUSAL_PAIR - document_mask.plan.cost
        return _Estimate(gain, "the mask is all of causal at this length")
    reason = "dense attention is expected to be faster at this length"
    if pairs > _MOST_PAIRS:
        return _Estimate(float("inf"), reason)
    return _Estimate(pairs * DENSE_PAIR - document_mask.plan.cost, reason)


def log(choice: Choice, mask: MaskExpression) -> None:
    """Log a choice once per mask and reason."""
    _log_once(choice, mask)


@functools.lru_cache(maxsize=1024)
def _log_once(choice: Choice, mask: MaskExpression) -> None:
    logger.info("backend 'auto' runs %r for '%s': %s", choice.backend, mask, choice.reason)
