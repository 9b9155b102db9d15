"""WHAT may attend to what. Masks are values: positions in, booleans out."""

from .heads import HeadMasks
from .mask import Bounds, Difference, Intersection, Mask, MaskExpression, Union
from .pattern import Pattern
from .patterns import (
    PATTERNS,
    BlockCausal,
    BlockLocal,
    Causal,
    Dilated,
    LogSparse,
    Offsets,
    Prefix,
    Sinks,
    SlidingWindow,
    Spans,
    Strided,
    Summary,
)
from .progression import FOREVER, Progression
from .strip import Strip
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
    "HeadMasks",
    "Intersection",
    "LogSparse",
    "Mask",
    "MaskExpression",
    "Offsets",
    "Pattern",
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
