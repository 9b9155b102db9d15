"""HOW to compute a mask without touching what it excludes: documents, layouts, parts."""

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
