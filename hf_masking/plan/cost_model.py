"""The cost model: the expected time of each way to compute a mask, and how much one operation takes at once.

The unit of time is one pair in the matrix products of a block of 64 queries, forward and backward. All numbers were
measured on CPUs by `hf-masking bench --preset readme` (docs/bench.json).

    blocks      pairs touched x pair_cost(queries in a block) [x GUARDED]  +  operations x OPERATION
    diagonals   pairs touched x DIAGONAL_PAIR                              +  operations x DIAGONAL_OPERATION
    dense       pairs of the triangle or of the rectangle x CAUSAL_PAIR or DENSE_PAIR

An operation is one round of tensor operations: it costs the same however few pairs it computes, so a plan is cheap if
it has few pairs and few operations.
"""

from __future__ import annotations

BLOCK_SIZES = (16, 32, 64, 128, 256)  # queries in a block
OPERATION = 50_000
# A guard tests every pair by itself.
GUARDED = 4
DIAGONAL_PAIR = 14.0
DIAGONAL_OPERATION = OPERATION / 4
# Dense attention by PyTorch's fused kernels. Both sides of the break-even are measured by the same benchmark.
CAUSAL_PAIR = 0.57  # for each pair of the triangle
DENSE_PAIR = 0.60  # for each pair of the rectangle, allowed or not

# The most scores of one operation: they should stay in the processor's cache.
WORKSPACE = 2**20
# The most queries of one operation, where these have few keys: the queries should stay in the cache, too.
MOST_ROWS = 4096

# The matrix products of small blocks are less efficient.
_PAIR = {16: 1.6, 32: 1.2, 64: 1.0, 128: 0.95, 256: 0.95}


def pair_cost(rows: int) -> float:
    """Return the time of one pair in a block of so many queries."""
    return next((_PAIR[size] for size in BLOCK_SIZES if rows <= size), _PAIR[BLOCK_SIZES[-1]])
