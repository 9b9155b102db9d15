"""The realized masks: what each layer lets each token see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...attention import log_weights
from ..forward.interface import RecordedCall, recording
from ..patching.record import require_patch


def effective_mask(model: nn.Module, **batch: Any) -> list[Tensor]:
    """Run a batch through a patched model, and return what every layer lets every token see.

    Parameters:
        model: a patched model.
        batch: the arguments of its forward (``input_ids``, ``attention_mask``, ``position_ids``, ...).

    Returns:
        For each layer booleans ``[batch, queries, keys]`` over the columns of the batch, with the model's own window,
        padding and packing applied; the batch axis is 1 where all rows are alike. Under a mask ``heads[...]`` there is
        one more axis, ``[batch, masks, queries, keys]``; under an adaptive mask it is that of the query heads.

    Raises:
        ValueError: the model is not patched.
    """
    return [_seen(call) for call in _calls(model, batch)]


def effective_weights(model: nn.Module, **batch: Any) -> list[Tensor]:
    """Return `effective_mask` as weights from 0 to 1, which adaptive masks may give."""
    return [_weights(call) for call in _calls(model, batch)]


def _calls(model: nn.Module, batch: dict[str, Any]) -> list[RecordedCall]:
    require_patch(model)
    with torch.no_grad(), recording() as calls:
        model(**batch)
        return sorted(calls, key=lambda call: call.layer)


def _seen(call: RecordedCall) -> Tensor:
    if call.mask.is_adaptive:
        return _weights(call) > 0
    seen = torch.stack([call.documents.allows(mask) for mask in call.mask.heads], dim=1)
    return seen if seen.shape[1] > 1 else seen[:, 0]


def _weights(call: RecordedCall) -> Tensor:
    if not call.mask.is_adaptive:
        return _seen(call).float()
    with torch.no_grad():
        return log_weights(call.mask, call.documents, call.query, call.key, call.features).exp()
