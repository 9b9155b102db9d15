"""The way from a call's inputs to the backend that computes them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .adaptive_reference import checked
from .backends import BACKENDS, require
from .choice import choose, log
from .inputs import Inputs, check_heads


def run(inputs: Inputs, backend: str) -> Tensor:
    """Attend by the backend of this name, or by the one that ``"auto"`` chooses.

    Raises:
        ValueError: the backend cannot compute this, or the mask is for another number of query heads.
    """
    mask, device = inputs.mask, inputs.query.device.type
    check_heads(mask, inputs.query.shape[1])
    if backend == "auto":
        chosen = choose(inputs)
        log(chosen, mask)
        backend = chosen.backend
    else:
        require(backend, inputs)
    is_adaptive = mask.is_adaptive
    if is_adaptive:
        inputs = replace(inputs, features=checked(inputs.features, mask, inputs.query, inputs.key))
    elif inputs.features:
        raise ValueError(f"'{mask}' is not adaptive and takes no features; leave features= out")
    attend = BACKENDS[backend].attend
    if not (is_adaptive and torch.is_autocast_enabled(device)):
        return attend(inputs)
    # Which blocks are selected must not depend on the backend, as it would if some products were in half precision.
    with torch.autocast(device, enabled=False):
        return attend(inputs)
