"""The backends by name, and what each of them can compute. `choice` says when ``"auto"`` takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import blockwise, flex, gathered, reference, sdpa
from .inputs import Inputs, Options


@dataclass(frozen=True)
class Backend:
    """One implementation of masked attention, and what it can compute.

    adaptive: adaptive masks.
    gaps: keys whose positions have gaps, as in a cache that evicts the keys that no later query reads.
    unsupported: the names of the `Options` that it cannot compute.
    limit: returns why it cannot compute these inputs for a reason of its own, or None.
    """

    attend: Callable[[Inputs], Tensor]
    adaptive: bool = False
    gaps: bool = False
    unsupported: tuple[str, ...] = ()
    limit: Callable[[Inputs], str | None] | None = None


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.attend, adaptive=True, gaps=True),
    "sdpa": Backend(sdpa.attend, gaps=True, unsupported=("softcap", "sink_logits")),
    "gathered": Backend(gathered.attend, adaptive=True, gaps=True),
    "blockwise": Backend(blockwise.attend, adaptive=True),
    "flex": Backend(flex.attend, unsupported=("dropout", "sink_logits"), limit=flex.limit),
}


def check_backend(name: str) -> None:
    """Raise a ValueError unless ``name`` is ``"auto"`` or a backend."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected 'auto' or one of {', '.join(map(repr, BACKENDS))}")


def takes_gaps(name: str) -> bool:
    """Return whether a backend, or what ``"auto"`` chooses, computes keys whose positions have gaps.

    Caches evict only where this is true, so ``auto`` must choose such a backend for scattered keys.
    """
    return name == "auto" or BACKENDS[name].gaps


def why_not(name: str, inputs: Inputs) -> str | None:
    """Return why a backend cannot compute these inputs; None if it can."""
    backend = BACKENDS[name]
    if inputs.mask.is_adaptive and not backend.adaptive:
        return f"it does not compute adaptive masks such as '{inputs.mask}'"
    if inputs.documents.scattered and not backend.gaps:
        return "it does not compute keys whose positions have gaps, as in a cache that has evicted keys"
    missing = unsupported(name, inputs.options)
    return missing if missing or backend.limit is None else backend.limit(inputs)


def unsupported(name: str, options: Options) -> str | None:
    """Return which options a backend does not support; None if it supports all."""
    missing = [option for option in options.needed if option in BACKENDS[name].unsupported]
    return f"it does not support {' and '.join(missing)}" if missing else None


def require(name: str, inputs: Inputs) -> None:
    """Raise a ValueError that names other backends, if this one cannot compute these inputs."""
    reason = why_not(name, inputs)
    if reason is not None:
        others = [repr(other) for other in BACKENDS if other != name and why_not(other, inputs) is None]
        raise ValueError(refusal(name, reason, others))


def refusal(name: str, reason: str, others: list[str]) -> str:
    """Return the message that says why a backend does not run, and what to use instead."""
    return f"backend {name!r} cannot compute this: {reason}; use backend='auto', {', '.join(others)}"
