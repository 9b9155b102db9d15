"""Ask about the values of tensors, which are unknown while a graph is compiled."""

from __future__ import annotations

import torch
from torch import Tensor

# Reasons for graph breaks, which errors under fullgraph=True quote.
EVICTS = (
    "which keys a cache evicts depends on the values of tensors; with fullgraph=True use a static cache "
    "(cache_implementation='static') or start with an empty one inside the graph"
)
ADAPTS = "what an adaptive mask computes depends on the values of tensors; leave fullgraph=True out"


def holds(condition: Tensor) -> bool:
    """Return whether a condition holds; in a compiled graph False, so that both answers must be right."""
    return not torch.compiler.is_compiling() and bool(condition)


def refuse_if(condition: Tensor, message: str) -> None:
    """Raise a ValueError if a condition holds; a compiled graph raises a RuntimeError, with this message, when it runs.

    Parameters:
        condition: one boolean.
        message: the same text for every batch, since a graph holds it as a constant.
    """
    if torch.compiler.is_compiling():
        # What the compiler itself makes of `assert tensor, "literal"`.
        torch._assert_async(~condition, message)
    elif bool(condition):
        raise ValueError(message)
