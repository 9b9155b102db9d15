"""The backends that compute attention under a mask, behind one function."""

from .masked_attention import BACKENDS, check_backend, masked_attention
from .weights import log_weights

__all__ = ["BACKENDS", "check_backend", "log_weights", "masked_attention"]
