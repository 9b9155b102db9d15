"""Tolerances: how far two correct computations may differ in the precision of a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..forward.interface import RecordedCall
from ..patching.apply import unpatched_copy
from ..patching.record import layer_masks
from .readout import Readout

# Relative to the standard deviation of the model's outputs.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Errors of half precision add up over layers, so a deep model may need more than the constant: this many times its
# error without a mask, and never so much that another text would pass.
_HEADROOM = 4
_MOST = 1.0


class Rounding:
    """The differences that rounding explains between two runs of a patched model.

    Parameters:
        dtype: the dtype that the model computes in, see `precision`.
        texts: the lengths of the pieces of each text on which the model is measured without its mask, if the constant
            is not enough.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, texts: Sequence[Sequence[int]]) -> None:
        self.model, self.dtype, self.texts = model, dtype, texts
        forms = [mask.normal_form() for mask in layer_masks(model) if mask.is_adaptive]
        self.scores_pairs = any(mask.scores_pairs for form in forms for mask in form.adaptive)

    @property
    def epsilon(self) -> float:
        return torch.finfo(self.dtype).eps

    def forgives(self, differences: Tensor) -> bool:
        """Return whether the differences of some tokens, relative to the standard deviation, may be rounding."""
        worst, constant = float(differences.max()), TOLERANCES[self.dtype]
        if worst <= constant:
            return True
        if self.epsilon <= torch.finfo(torch.float32).eps or not math.isfinite(worst):
            return False
        limit = max(constant, min(_MOST, _HEADROOM * self.unpatched))
        # A mask that scores pairs leaves out low scores. Between nearly equal ones rounding decides, and tokens that
        # then read another key differ a lot: those are few, while a fault shows in most tokens.
        return worst <= limit or (self.scores_pairs and float(differences.median()) <= limit)

    @functools.cached_property
    def unpatched(self) -> float:
        """The greatest difference of cached decoding from recomputation in the model without its mask."""
        read = Readout(unpatched_copy(self.model))
        found = []
        for pieces in self.texts:
            tokens = read.draw(2, sum(pieces), seed=0)
            found.append(float(relative(read.cached(tokens, pieces), read(tokens)).max()))
        return max(found)


def precision(model: nn.Module, calls: Sequence[RecordedCall]) -> torch.dtype:
    """Return the coarsest dtype of the weights and of attention's inputs, which differ under autocast.

    Parameters:
        calls: calls of the model's attention.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()} | {call.value.dtype for call in calls}
    # Dtypes of 8 and 4 bits only store weights.
    return max(dtypes & TOLERANCES.keys(), key=lambda dtype: torch.finfo(dtype).eps, default=torch.bfloat16)


def spread(x: Tensor) -> float:
    """Return the standard deviation, safe to divide by."""
    return float(x.std().nan_to_num(nan=1.0).clamp(min=1e-30))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Return absolute differences, infinite for NaN: comparisons with NaN would pass for equal."""
    return (one - other).abs().nan_to_num(nan=torch.inf)


def relative(one: Tensor, other: Tensor) -> Tensor:
    """Return the greatest difference of each token ``[B, N]``, relative to the standard deviation of the outputs."""
    return distance(one, other).amax(-1) / spread(other)
