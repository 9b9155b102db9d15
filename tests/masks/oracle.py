"""Brute force: the definitions of the masks once more, as nested Python comparisons on single integers."""

import functools

import torch

from hf_masking.masks import Difference, Intersection, Mask, Union

ROWS, COLUMNS = 23, 19
# Beyond it the patterns that tests draw have no reader, unless they have one without end.
HORIZON = 97


@functools.cache
def _log_sparse(base):
    return {0} | {base**power for power in range(64)}


PAIRS = {
    "causal": lambda i, j: j <= i,
    "window": lambda i, j, w: 0 <= i - j < w,
    "block_causal": lambda i, j, b: i // b >= j // b,
    "block_local": lambda i, j, b, lookback=0: j <= i and i // b - j // b <= lookback,
    "offsets": lambda i, j, *offsets: i - j in offsets,
    "strided": lambda i, j, s: j <= i and (i - j) % s == 0,
    "dilated": lambda i, j, w, d: 0 <= i - j < w * d and (i - j) % d == 0,
    "log_sparse": lambda i, j, base=2: i - j in _log_sparse(base),
    "sinks": lambda i, j, n: j <= i and j < n,
    "prefix": lambda i, j, p: i < p and j < p,
    "spans": lambda i, j, *edges: any(a <= i < b and a <= j < b for a, b in zip(edges[::2], edges[1::2], strict=True)),
    "prompt": lambda i, j, p: j <= i and j < p,
    "after_prompt": lambda i, j, p: i >= p and j <= i,
    "summary": lambda i, j, s, w: j <= i and j % s >= s - w,
}


def allowed(mask: Mask, i: int, j: int) -> bool:
    """Return whether position i may attend to position j."""
    match mask:
        case Union(members):
            return any(allowed(member, i, j) for member in members)
        case Intersection(members):
            return all(allowed(member, i, j) for member in members)
        case Difference(left, right):
            return allowed(left, i, j) and not allowed(right, i, j)
    return bool(PAIRS[mask.name](i, j, *mask.arguments()))


def matrix(mask: Mask, rows: range, columns: range) -> torch.Tensor:
    """Booleans [len(rows), len(columns)]."""
    pairs = [[allowed(mask, i, j) for j in columns] for i in rows]
    return torch.tensor(pairs, dtype=torch.bool).reshape(len(rows), len(columns))


def brute_force(mask: Mask, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """The first rows and columns of `matrix`."""
    return matrix(mask, range(rows), range(columns))
