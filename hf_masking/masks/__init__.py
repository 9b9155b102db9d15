"""WHAT may attend to what. Pure values: positions in, booleans out."""

from .block_causal import BlockCausal
from .block_local import BlockLocal
from .causal import Causal
from .compositions import Difference, Intersection, Union
from .dilated import Dilated
from .log_sparse import LogSparse
from .mask import Mask
from .offsets import Offsets
from .per_head import PerHead
from .progression import FOREVER, Progression
from .registry import PATTERNS
from .sinks import Sinks
from .sliding_window import SlidingWindow
from .spec import MaskSyntaxError
from .strided import Strided
from .strip import Strip
from .summary import Summary
from .tile import Tile

__all__ = [
    "FOREVER",
    "PATTERNS",
    "BlockCausal",
    "BlockLocal",
    "Causal",
    "Difference",
    "Dilated",
    "Intersection",
    "LogSparse",
    "Mask",
    "MaskSyntaxError",
    "Offsets",
    "PerHead",
    "Progression",
    "Sinks",
    "SlidingWindow",
    "Strided",
    "Strip",
    "Summary",
    "Tile",
    "Union",
]
