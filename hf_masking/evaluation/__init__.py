"""Measure how well a model predicts under a mask, and what that costs."""

from .cache_size import CacheSize, cache_size
from .density import realised_density
from .interleaved import Measurement, side_by_side
from .memory import peak_memory
from .perplexity import perplexity, refuse_lookahead
from .probes import Copy, Item, Passkey, ProbeResult, Recall, Task, ordinary_tokens, probe, probe_task
from .process import in_own_process
from .scoring import Perplexity, WindowedText
from .text import STDLIB, Text, TextStream, encode, load_stream, load_text, tokenize

__all__ = [
    "STDLIB",
    "CacheSize",
    "Copy",
    "Item",
    "Measurement",
    "Passkey",
    "Perplexity",
    "ProbeResult",
    "Recall",
    "Task",
    "Text",
    "TextStream",
    "WindowedText",
    "cache_size",
    "encode",
    "in_own_process",
    "load_stream",
    "load_text",
    "ordinary_tokens",
    "peak_memory",
    "perplexity",
    "probe",
    "probe_task",
    "realised_density",
    "refuse_lookahead",
    "side_by_side",
    "tokenize",
]
