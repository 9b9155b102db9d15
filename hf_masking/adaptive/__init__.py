"""Adaptive masks: what they allow depends on the tokens. A new one is one file and one line in `ADAPTIVE`."""

from .adaptive_mask import AdaptiveMask
from .adaptive_span import AdaptiveSpan
from .features import Features, LayerShape
from .relevance import Relevance
from .selection import Selection
from .top_blocks import TopBlocks
from .weighting import Weighting

ADAPTIVE: dict[str, type[AdaptiveMask]] = {pattern.name: pattern for pattern in (AdaptiveSpan, TopBlocks, Relevance)}

__all__ = [
    "ADAPTIVE",
    "AdaptiveMask",
    "AdaptiveSpan",
    "Features",
    "LayerShape",
    "Relevance",
    "Selection",
    "TopBlocks",
    "Weighting",
]
