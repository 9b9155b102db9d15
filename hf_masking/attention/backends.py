"""The backends by name, and what each of them can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..masks import Mask
from ..plan import Documents
from . import blockwise, flex, gathered, reference, sdpa


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
