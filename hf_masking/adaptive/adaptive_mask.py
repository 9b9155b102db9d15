"""The common base of the two kinds of adaptive masks, `Weighting` and `Selection`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NoReturn

from torch import Tensor

from ..masks import Causal, Mask, Pattern


@dataclass(frozen=True)
class AdaptiveMask(Pattern):
    """A mask that depends on the tokens: a `Weighting` gives pairs soft weights, a `Selection` picks key blocks.

    It is a value like every mask, and what it allows follows from a batch. No query may depend on a later token.
    """

    @property
    def is_adaptive(self) -> bool:
        return True

    @property
    def envelope(self) -> Mask:
        """A static mask outside of which the weight is 0, whatever the tokens are."""
        return Causal()

    @property
    def scores_pairs(self) -> bool:
        """True if the weight of a pair depends on its key, and not on the query and the distance alone.

        If so, a cache must hold more than keys and values, and rounding may decide about pairs of nearly equal scores.
        """
        return True

    def strips(self) -> NoReturn:
        """Refuse every question about pairs: the answers to all of them follow from strips."""
        raise ValueError(
            f"what '{self}' allows depends on the content; effective_mask(model, ...) shows it for a batch"
        )

    def last_reader(self, k: Tensor) -> Tensor:
        return self.envelope.last_reader(k)

    @property
    def lookahead(self) -> int:
        return 0

    def __str__(self) -> str:
        shown = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        # A field without a default is always shown, and stands before those with one.
        arguments = [f"{name}={_as_text(value)}" for name, value, default in shown if value != default]
        return f"{self.name}:{','.join(arguments)}" if arguments else self.name

    def _require(self, field: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ValueError(f"{self.name}: `{field}` must be {expected}, got {getattr(self, field)!r}")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Exactly, and without an exponent, which specs do not have.
    return f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)
