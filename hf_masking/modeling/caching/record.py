"""`CacheRecord`: the notes that a patched model leaves on a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache

ATTRIBUTE = "hf_masking"  # the attribute of a cache that holds its CacheRecord


class GivenMarks(NamedTuple):
    """The marks of the prompts that a cache was made for, as a forward takes them."""

    prefix_lengths: Any = None
    span_ids: Tensor | None = None
    prompt_lengths: Any = None


@dataclass
class CacheRecord:
    """Notes on a cache that later calls need.

    filled: a patched model has stored its keys.
    packed: its rows hold several documents.
    marks: those of the prompts that it was made for.
    """

    filled: bool = False
    packed: bool = False
    marks: GivenMarks = field(default_factory=GivenMarks)


def record_of(cache: Cache) -> CacheRecord:
    """Return the record of a cache, which gets one if it has none."""
    record: CacheRecord | None = getattr(cache, ATTRIBUTE, None)
    if record is None:
        record = CacheRecord()
        setattr(cache, ATTRIBUTE, record)
    return record
