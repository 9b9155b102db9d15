"""Drop Transformers' report that what masks have learned is unexpected: it does not know these weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..patching.layer_mask import NAME

_LOADS = logging.getLogger("transformers.modeling_utils")


@contextmanager
def without_learned() -> Iterator[None]:
    """Drop the report of a load if it lists learned parameters of masks; the caller reports everything else in it."""

    def is_kept(record: logging.LogRecord) -> bool:
        return f".{NAME}." not in record.getMessage()

    _LOADS.addFilter(is_kept)
    try:
        yield
    finally:
        _LOADS.removeFilter(is_kept)
