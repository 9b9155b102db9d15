"""Copies of a model that share its weights."""

from __future__ import annotations

import copy
import itertools
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def sharing_weights(model: Model) -> Model:
    """Return a copy of the model that shares its parameters and buffers, and can be patched by itself."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return copy.deepcopy(model, memo)
