"""Export the names of `hf_masking.training`, which imports this module when the first one is used."""

from .data import Contexts
from .engine import asked_for, on_cpu
from .labels import labels_for_prefix_lm, labels_for_prompt
from .loop import finetune
from .settings import TrainingSettings
from .stream import TokenStream
from .trainer import FinetuneResult

__all__ = [
    "Contexts",
    "FinetuneResult",
    "TokenStream",
    "TrainingSettings",
    "asked_for",
    "finetune",
    "labels_for_prefix_lm",
    "labels_for_prompt",
    "on_cpu",
]
