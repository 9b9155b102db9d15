"""Fine-tuning under a mask, and the comparison of masks."""

from .data import Contexts
from .engine import asked_for, on_cpu
from .finetune import FinetuneResult, finetune
from .labels import labels_behind
from .settings import TrainingSettings
from .stream import TokenStream

__all__ = [
    "Contexts",
    "FinetuneResult",
    "TokenStream",
    "TrainingSettings",
    "asked_for",
    "finetune",
    "labels_behind",
    "on_cpu",
]
