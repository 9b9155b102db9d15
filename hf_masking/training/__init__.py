"""Fine-tuning under a mask, and the comparison of masks."""

from .data import Contexts
from .finetune import FinetuneResult, finetune, on_cpu
from .settings import TrainingSettings

__all__ = ["Contexts", "FinetuneResult", "TrainingSettings", "finetune", "on_cpu"]
