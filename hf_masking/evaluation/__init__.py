"""How well a model does under a mask, and what that costs."""

from .memory import peak_memory
from .perplexity import Perplexity, perplexity, refuse_lookahead
from .text import STDLIB, Text, encode, load_text

__all__ = ["STDLIB", "Perplexity", "Text", "encode", "load_text", "peak_memory", "perplexity", "refuse_lookahead"]
