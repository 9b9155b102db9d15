"""The static patterns, one file each.

A new one is a subclass of `Pattern` in a file of its own, its name in this module (the import, `PATTERNS`,
``__all__``), in `hf_masking/masks/__init__.py` and in `hf_masking/public.py`, and an example in
`hf_masking/cli/masks.py`. Outside the package the class and `register_mask` are enough.
"""

from ..pattern import Pattern
from .after_prompt import AfterPrompt
from .block_causal import BlockCausal
from .block_local import BlockLocal
from .causal import Causal
from .dilated import Dilated
from .log_sparse import LogSparse
from .offsets import Offsets
from .prefix import Prefix
from .prompt import Prompt
from .sinks import Sinks
from .sliding_window import SlidingWindow
from .spans import Spans
from .strided import Strided
from .summary import Summary

PATTERNS: dict[str, type[Pattern]] = {
    pattern.name: pattern
    for pattern in (
        Causal,
        SlidingWindow,
        BlockCausal,
        BlockLocal,
        Offsets,
        Strided,
        Dilated,
        LogSparse,
        Sinks,
        Summary,
        Prefix,
        Spans,
        Prompt,
        AfterPrompt,
    )
}

__all__ = [
    "PATTERNS",
    "AfterPrompt",
    "BlockCausal",
    "BlockLocal",
    "Causal",
    "Dilated",
    "LogSparse",
    "Offsets",
    "Prefix",
    "Prompt",
    "Sinks",
    "SlidingWindow",
    "Spans",
    "Strided",
    "Summary",
]
