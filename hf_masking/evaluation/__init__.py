"""How well a model does under a mask, and what that costs."""

from .cache_size import CacheSize, cache_size
from .density import realised_density
from .generation import check_generation
from .memory import peak_memory
from .perplexity import Perplexity, perplexity, refuse_lookahead
from .process import in_own_process
from .text import STDLIB, Text, TextStream, encode, load_stream, load_text

__all__ = [
    "STDLIB",
    "CacheSize",
    "Perplexity",
    "Text",
    "TextStream",
    "cache_size",
    "check_generation",
    "encode",
    "in_own_process",
    "load_stream",
    "load_text",
    "peak_memory",
    "perplexity",
    "realised_density",
    "refuse_lookahead",
]
