"""Find the length from which attention under a mask is faster than dense causal attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..evaluation.benchmark import IS_CAUSAL, Contender, Row, Shape, measure
from ..spec import parse_mask

_SHORTEST = 256


def break_even(masks: Sequence[str], shape: Shape, longest: int, rounds: int = 3) -> dict[str, int | None]:
    """Return the break-even length of each mask, forward and backward: 256, 512, ... up to ``longest``, or None.

    Adaptive masks are left out, because their cost depends on the content. If ``longest`` is below 256 there is no
    entry at all.
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
    return {mask: pays_from(rows, mask) for mask in static}


def pays_from(rows: Sequence[Row], mask: str) -> int | None:
    """Return the least measured length from which training under the mask is faster than dense causal attention."""
    rival = {row.length: row.both for row in rows if row.backend == IS_CAUSAL and row.both}
    ours = {row.length: row.both for row in rows if row.mask == mask and row.backend == "blockwise" and row.both}
    for row in rows:
        if row.mask == mask and row.backend == "auto" and row.both:
            ours.setdefault(row.length, row.both)
    shared = sorted(length for length in ours if length in rival)
    slower = [length for length in shared if (ours[length] or math.inf) >= (rival[length] or 0.0)]
    return next((length for length in shared if length > max(slower, default=0)), None)
