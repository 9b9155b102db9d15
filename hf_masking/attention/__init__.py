"""The backends that compute attention under a mask, behind one function."""

from .masked_attention import BACKENDS, check_backend, masked_attention

__all__ = ["BACKENDS", "check_backend", "masked_attention"]
