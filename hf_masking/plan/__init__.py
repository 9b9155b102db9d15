"""HOW to compute a mask without touching what it excludes: documents, layouts, parts."""

from .blocks import Blocks
from .diagonals import Diagonals
from .documents import Documents, Segment
from .layout import Lengths
from .plan import Plan, is_causal, plan_of

__all__ = ["Blocks", "Diagonals", "Documents", "Lengths", "Plan", "Segment", "is_causal", "plan_of"]
