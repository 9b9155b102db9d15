"""Probe how far back a model uses its context: synthetic questions, answered by ranking candidates."""

from .copying import Copy
from .item import Item, Task
from .passkey import Passkey
from .probing import AtDistance, ProbeResult, answer, check_readable, probe
from .questions import Questions
from .recall import Recall
from .tasks import check_probe, probe_task
from .vocabulary import ordinary_tokens

__all__ = [
    "AtDistance",
    "Copy",
    "Item",
    "Passkey",
    "ProbeResult",
    "Questions",
    "Recall",
    "Task",
    "answer",
    "check_probe",
    "check_readable",
    "ordinary_tokens",
    "probe",
    "probe_task",
]
