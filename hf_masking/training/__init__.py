"""Fine-tuning under a mask, and the comparison of masks."""

from .data import Contexts
from .finetune import FinetuneResult, finetune, on_cpu
from .labels import labels_behind
from .settings import TrainingSettings

__all__ = ["Contexts", "FinetuneResult", "TrainingSettings", "finetune", "labels_behind", "on_cpu"]
