"""The static patterns by name. A new one is one line here."""

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
