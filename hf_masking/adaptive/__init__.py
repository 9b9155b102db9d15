"""Adaptive masks: the allowed pairs depend on the input.

A new one is a subclass of `Weighting` or `Selection` in a file of its own, its name in this module (the import,
`ADAPTIVE`, ``__all__``) and in `hf_masking/public.py`, and an example in `hf_masking/cli/masks.py`. No plan, kernel or
cache needs to know it. Outside the package the class and `register_mask` are enough.
"""

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
