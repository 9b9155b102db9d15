"""The names that the spec language knows. A new static pattern is one line here."""

import importlib

from .block_causal import BlockCausal
from .block_local import BlockLocal
from .causal import Causal
from .dilated import Dilated
from .log_sparse import LogSparse
from .mask import Mask
from .offsets import Offsets
from .prefix import Prefix
from .sinks import Sinks
from .sliding_window import SlidingWindow
from .spans import Spans
from .strided import Strided
from .summary import Summary

PATTERNS: dict[str, type[Mask]] = {
    pattern.name: pattern
    for pattern in (
        Causal,
        SlidingWindow,
        BlockCausal,
        BlockLocal,
        Offsets,
        Strided,
        Dilated,
        LogSparse,
        Sinks,
        Summary,
        Prefix,
        Spans,
    )
}

# With the adaptive ones, which enter themselves when their package is imported.
KNOWN: dict[str, type[Mask]] = dict(PATTERNS)


def known() -> dict[str, type[Mask]]:
    """Return the class of every mask that a spec may name."""
    # Not at the top: adaptive masks are built on static ones.
    importlib.import_module("hf_masking.adaptive")
    return KNOWN
