"""The backends by name, and what each of them can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import Mask
from ..plan import Documents
from . import automatic, blockwise, flex, gathered, reference, sdpa
from .weights import checked


@dataclass(frozen=True)
class Backend:
    """One implementation of masked attention.

    adaptive: it computes adaptive masks.
    gaps: it computes keys whose positions have gaps, as in a cache that evicts what no later query reads.
    """

    attend: Callable[..., Tensor]
    adaptive: bool = False
    gaps: bool = False


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.attend, adaptive=True, gaps=True),
    "sdpa": Backend(sdpa.attend, gaps=True),
    "gathered": Backend(gathered.attend, adaptive=True, gaps=True),
    "blockwise": Backend(blockwise.attend, adaptive=True),
    "flex": Backend(flex.attend),
}


def check_backend(name: str) -> None:
    """Raises a ValueError unless ``name`` is a backend."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")


def takes_gaps(name: str) -> bool:
    """Return whether a backend, or what ``"auto"`` chooses, computes keys whose positions have gaps."""
    return name == "auto" or BACKENDS[name].gaps


def require_fit(name: str, mask: Mask, documents: Documents) -> None:
    """Raises a ValueError if the backend cannot compute such a mask, or such keys."""
    if mask.is_adaptive and not BACKENDS[name].adaptive:
        raise ValueError(
            f"backend {name!r} computes no adaptive mask such as '{mask}'; use backend='blockwise' or 'reference'"
        )
    if documents.scattered and not BACKENDS[name].gaps:
        raise ValueError(
            f"backend {name!r} computes neighbouring keys, and the positions of these have gaps, as in a cache that "
            "evicts; use backend='auto' or 'gathered', or start with an empty cache"
        )


def check_heads(mask: Mask, n_heads: int) -> None:
    """Raises a ValueError unless the mask's groups of heads divide so many query heads."""
    if n_heads % len(mask.heads):
        raise ValueError(
            f"{mask} gives {len(mask.heads)} groups of heads, which do not divide {n_heads} query heads; "
            "give as many masks as divide them"
        )


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    documents: Documents,
    *,
    backend: str,
    scale: float,
    features: Sequence[Features] = (),
    **options: Any,
) -> Tensor:
    """Attend by the backend of this name, or by the one that ``"auto"`` chooses. Shapes as in `masked_attention`.

    Parameters:
        options: ``dropout``, ``softcap`` and ``sink_logits``.

    Raises:
        ValueError: the backend cannot do this, or the mask is for another number of query heads.
    """
    check_heads(mask, query.shape[1])
    if backend == "auto":
        choice = automatic.choose(mask, documents, query, key, value, **options)
        automatic.log(choice, mask)
        backend = choice.backend
    require_fit(backend, mask, documents)
    if mask.is_adaptive:
        options["features"] = checked(features, mask, query, key)
    elif features:
        raise ValueError(f"'{mask}' does not look at the content and takes no features; leave features= out")
    # What is chosen must not depend on the way of computing it, as it would if some products were in half precision.
    autocast = torch.is_autocast_enabled(query.device.type) and not mask.is_adaptive
    with torch.autocast(query.device.type, enabled=autocast):
        return BACKENDS[backend].attend(query, key, value, mask, documents, scale=scale, **options)
