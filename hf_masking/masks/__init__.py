"""WHAT may attend to what. Masks are values: positions in, booleans out."""

from .heads import HeadMasks
from .marks import Bounds, Marks
from .mask import Difference, Intersection, Mask, MaskExpression, Union
from .pattern import Pattern
from .patterns import (
    PATTERNS,
    AfterPrompt,
    BlockCausal,
    BlockLocal,
    Causal,
    Dilated,
    LogSparse,
    Offsets,
    Prefix,
    Prompt,
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
    "AfterPrompt",
    "BlockCausal",
    "BlockLocal",
    "Bounds",
    "Causal",
    "Difference",
    "Dilated",
    "HeadMasks",
    "Intersection",
    "LogSparse",
    "Marks",
    "Mask",
    "MaskExpression",
    "Offsets",
    "Pattern",
    "Prefix",
    "Progression",
    "Prompt",
    "Sinks",
    "SlidingWindow",
    "Spans",
    "Strided",
    "Strip",
    "Summary",
    "Tile",
    "Union",
]
