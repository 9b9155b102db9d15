"""A part that is computed by matrix products: blocks of queries, each against a slab of neighbouring keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..masks.intervals import Guard
from .cost_model import GUARDED, OPERATION, pair_cost
from .layout import Layout, Lengths

_RUN_BYTES = 300  # memory of a run, whose fields are Python's integers


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring blocks that are computed together: each has ``rows`` queries and a key slab of ``width`` keys.

    One block of 4 queries under ``window:6`` and its key slab; x is an allowed pair:

            first_key        first_key + width
                |                 |
        row 0   x x x x x x . . .
        row 1   . x x x x x x . .
        row 2   . . x x x x x x .
        row 3   . . . x x x x x x
                |left|      |right|

    Block t begins at row ``first_row + t * rows`` and its slab at key ``first_key + t * rows``, so the slabs of a run
    may overlap. A single block may have any slab.

    left, right: how many columns at either end of a slab some row may not attend to; the columns between them are
        allowed for every row.
    uniform: the rows of all blocks may attend to the same columns of their slabs.
    """

    first_row: int
    blocks: int
    rows: int
    first_key: int
    width: int
    left: int
    right: int
    uniform: bool

    @property
    def stop_row(self) -> int:
        return self.first_row + self.blocks * self.rows

    @property
    def pairs(self) -> int:
        """Pairs that are computed."""
        return self.blocks * self.rows * self.width


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs over a layout.

    first, stop: the interval of keys of each row, int32 ``[C, N/C]``.
    guards: tests that the pairs inside the intervals must pass.
    weighted: an adaptive mask gives each pair a weight, see `hf_masking.adaptive`.
    """

    layout: Layout
    first: Tensor
    stop: Tensor
    runs: tuple[Run, ...]
    guards: tuple[Guard, ...]
    lengths: Lengths
    weighted: bool = False

    @property
    def classes(self) -> int:
        return self.first.shape[0]

    @property
    def touched(self) -> int:
        """Pairs that are computed."""
        return self.classes * sum(run.pairs for run in self.runs)

    @property
    def cost(self) -> float:
        """Time, see `cost_model`."""
        time = self.classes * sum(run.pairs * pair_cost(run.rows) for run in self.runs)
        return time * (GUARDED if self.guards else 1) + OPERATION * len(self.runs)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        columns = 0 if self.layout.columns is None else self.layout.columns.nbytes
        return self.first.nbytes + self.stop.nbytes + columns + _RUN_BYTES * len(self.runs)

    def __str__(self) -> str:
        blocks = sum(run.blocks for run in self.runs) * self.classes
        rows, widths = max(run.rows for run in self.runs), [run.width for run in self.runs]
        width = str(widths[0]) if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"
        classes = f" in {self.classes} classes" if self.classes > 1 else ""
        guards = ", with a guard" if self.guards else ""
        return f"{blocks:,} block{'s' * (blocks > 1)} of up to {rows:,} queries x {width} keys{classes}{guards}"

    def positions(self) -> tuple[Tensor, Tensor]:
        """Return the positions of the rows ``[C, N/C]`` and of the keys ``[C, M/C]`` in this layout."""
        q, k = self.lengths.query_positions()[:, None], self.lengths.key_positions()[:, None]
        return self.layout.queries(q)[..., 0], self.layout.keys(k)[..., 0]
