"""WHAT may attend to what. Pure values: positions in, booleans out."""

from .block_causal import BlockCausal
from .block_local import BlockLocal
from .both_ways import Bounds
from .causal import Causal
from .compositions import Difference, Intersection, Union
from .dilated import Dilated
from .log_sparse import LogSparse
from .mask import Mask
from .offsets import Offsets
from .per_head import PerHead
from .prefix import Prefix
from .progression import FOREVER, Progression
from .registry import PATTERNS
from .sinks import Sinks
from .sliding_window import SlidingWindow
from .spans import Spans
from .strided import Strided
from .strip import Strip
from .summary import Summary
from .tile import Tile

__all__ = [
    "FOREVER",
    "PATTERNS",
    "BlockCausal",
    "BlockLocal",
    "Bounds",
    "Causal",
    "Difference",
    "Dilated",
    "Intersection",
    "LogSparse",
    "Mask",
    "Offsets",
    "PerHead",
    "Prefix",
    "Progression",
    "Sinks",
    "SlidingWindow",
    "Spans",
    "Strided",
    "Strip",
    "Summary",
    "Tile",
    "Union",
]
