"""Masks that look at the content."""

from .adaptive_mask import AdaptiveMask, Features, LayerShape
from .relevance import Relevance
from .span import AdaptiveSpan
from .top_blocks import TopBlocks

ADAPTIVE: dict[str, type[AdaptiveMask]] = {pattern.name: pattern for pattern in (AdaptiveSpan, TopBlocks, Relevance)}

__all__ = ["ADAPTIVE", "AdaptiveMask", "AdaptiveSpan", "Features", "LayerShape", "Relevance", "TopBlocks"]
