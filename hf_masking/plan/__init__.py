"""How to compute a mask without touching the pairs that it excludes: documents, layouts, plans and their parts."""

from .blocks import Blocks
from .diagonals import Diagonals
from .document_mask import DocumentMask, document_masks
from .documents import Documents, Segment
from .layout import Lengths
from .plan import Part, Plan, is_causal, plan_of
from .selected import Selected

__all__ = [
    "Blocks",
    "Diagonals",
    "DocumentMask",
    "Documents",
    "Lengths",
    "Part",
    "Plan",
    "Segment",
    "Selected",
    "document_masks",
    "is_causal",
    "plan_of",
]
