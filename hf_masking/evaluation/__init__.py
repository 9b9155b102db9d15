"""Measure how well a model predicts under a mask, and what that costs."""

from .cache_size import CacheSize, cache_size
from .density import realised_density
from .interleaved import Measurement, side_by_side
from .memory import peak_memory
from .perplexity import perplexity, refuse_lookahead
from .process import in_own_process
from .scoring import Perplexity, WindowedText
from .text import STDLIB, Text, TextStream, encode, load_stream, load_text, tokenize

__all__ = [
    "STDLIB",
    "CacheSize",
    "Measurement",
    "Perplexity",
    "Text",
    "TextStream",
    "WindowedText",
    "cache_size",
    "encode",
    "in_own_process",
    "load_stream",
    "load_text",
    "peak_memory",
    "perplexity",
    "realised_density",
    "refuse_lookahead",
    "side_by_side",
    "tokenize",
]
