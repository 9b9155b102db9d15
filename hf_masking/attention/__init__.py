"""The backends that compute attention under a mask, behind one function."""

from .adaptive_reference import log_weights
from .backends import BACKENDS, check_backend, takes_gaps
from .exchange import ExchangedBytes, exchange, exchanged_bytes
from .masked_attention import masked_attention
from .operators import name_of
from .probabilities import attention_with_probabilities

__all__ = [
    "BACKENDS",
    "ExchangedBytes",
    "attention_with_probabilities",
    "check_backend",
    "exchange",
    "exchanged_bytes",
    "log_weights",
    "masked_attention",
    "name_of",
    "takes_gaps",
]
