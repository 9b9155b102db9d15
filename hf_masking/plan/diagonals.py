"""A part that is computed elementwise: a few single distances ``i - j``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..masks import FOREVER
from ..masks.intervals import EVERY_KEY, Intervals
from .cost_model import DIAGONAL_OPERATION, DIAGONAL_PAIR
from .layout import Lengths

MOST_DISTANCES = 32  # of one piece
_ROWS = 1024  # rows that are computed together
_DIAGONAL_BYTES = 200  # memory of a diagonal


@dataclass(frozen=True)
class Diagonal:
    """Row r attends to key ``r + shift``, for ``rows`` rows from ``row`` on."""

    row: int
    rows: int
    shift: int


@dataclass(frozen=True)
class Diagonals:
    """Diagonals of one document; a row is on all of them, on some or on none."""

    diagonals: tuple[Diagonal, ...]

    def __str__(self) -> str:
        return f"{len(self.diagonals)} diagonals"

    @property
    def touched(self) -> int:
        """Pairs that are computed."""
        return sum(diagonal.rows for diagonal in self.diagonals)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return _DIAGONAL_BYTES * len(self.diagonals)

    @property
    def is_cheapest(self) -> bool:
        """True if it is cheaper than any blocks, the smallest of which touch 16 keys per row."""
        return len(self.diagonals) <= 2

    @property
    def cost(self) -> float:
        """Time, see `cost_model`."""
        operations = sum(1 + diagonal.rows / _ROWS for diagonal in self.diagonals)
        return self.touched * DIAGONAL_PAIR + operations * DIAGONAL_OPERATION


def diagonals_of(piece: Intervals, lengths: Lengths) -> Diagonals | None:
    """Return the diagonals of a clipped, non-empty piece; None if it is not made of diagonals, or of too many."""
    if piece.guards or piece.lattice.keys != EVERY_KEY:
        return None
    real = piece.first < piece.stop
    q = lengths.query_positions()
    stride = piece.lattice.stride
    # Distances are multiples of the stride: the least is rounded up, the greatest down.
    least = -(int(torch.where(real, piece.stop - 1 - q, -FOREVER).max()) // stride) * stride
    greatest = int(torch.where(real, q - piece.first, -FOREVER).max()) // stride * stride
    distances = range(least, greatest + 1, stride)
    if len(distances) > MOST_DISTANCES:
        return None
    diagonals = []
    for distance in distances:
        # With a single distance every row that is not empty is on it.
        on_it = real if len(distances) == stride == 1 else (piece.first <= q - distance) & (q - distance < piece.stop)
        row, rows = int(on_it.int().argmax()), int(on_it.sum())
        if not bool(on_it[row : row + rows].all()):
            return None
        if rows:
            # Its keys are neighbours, and so between the same gaps.
            first_key = lengths.keys_before(torch.tensor(lengths.first_query + row - distance))
            diagonals.append(Diagonal(row, rows, int(first_key) - row))
    return Diagonals(tuple(diagonals))
