"""Find the length from which attention under a mask is faster than dense causal attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..evaluation.benchmark import IS_CAUSAL, Contender, Row, Shape, measure
from ..spec import parse_mask

_SHORTEST = 256


def break_even(masks: Sequence[str], shape: Shape, longest: int, rounds: int = 3) -> dict[str, int | None]:
    """Return the break-even length of each mask, forward and backward: 256, 512, ... up to ``longest``, or None.

    Adaptive masks are left out, because their cost depends on the content, and so are masks of which every measurement
    was disturbed. If ``longest`` is below 256 there is no entry at all.
    """
    if longest < _SHORTEST:
        return {}
    static = [mask for mask in masks if not parse_mask(mask).is_adaptive and not parse_mask(mask).needs]
    contenders = [Contender("causal", IS_CAUSAL), *(Contender(mask, "blockwise") for mask in static)]
    rows: list[Row] = []
    length = _SHORTEST
    while length <= longest:
        rows += measure(replace(shape, length=length), contenders, rounds)
        length *= 2
    return {mask: break_even_length(rows, mask) for mask in static if is_known(rows, mask)}


def is_known(rows: Sequence[Row], mask: str) -> bool:
    """Return whether there is a length at which neither the mask nor dense causal attention was disturbed."""
    return any(True for _ in _compared(rows, mask))


def break_even_length(rows: Sequence[Row], mask: str) -> int | None:
    """Return the least measured length from which training under the mask is faster than dense causal attention.

    Disturbed points are ignored. None if the mask is not faster at the greatest length that is left.
    """
    compared = dict(_compared(rows, mask))
    slower = [length for length, is_faster in compared.items() if not is_faster]
    return min((length for length in compared if length > max(slower, default=0)), default=None)


def _compared(rows: Sequence[Row], mask: str) -> Iterator[tuple[int, bool]]:
    """Yield each length at which both were measured undisturbed, and whether the mask was faster there."""
    rivals = {row.length: row.both for row in rows if row.backend == IS_CAUSAL}
    ours = {row.length: row.both for row in rows if row.mask == mask and row.backend == "blockwise"}
    for row in rows:
        if row.mask == mask and row.backend == "auto":
            ours.setdefault(row.length, row.both)
    for length in ours.keys() & rivals.keys():
        mine, theirs = ours[length], rivals[length]
        if mine and theirs and not mine.disturbed and not theirs.disturbed:
            yield length, mine.median < theirs.median
