"""Masks that are too irregular for intervals."""

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.masks import intervals
from hf_masking.masks.intervals import MAX_PIECES, TooIrregularError

from .oracle import matrix

EVENS = "offsets:" + ",".join(map(str, range(0, 4 * MAX_PIECES, 2)))


@pytest.mark.parametrize("spec", [f"causal-{EVENS}", f"causal-{EVENS}-window:3"])
def test_a_mask_of_too_many_pieces_is_one_guarded_piece(spec):
    mask, q = parse_mask(spec), torch.arange(4 * MAX_PIECES)
    (piece,) = mask.intervals(q)
    assert len(piece.guards) == 1
    k = q[None, :]
    inside = (k >= piece.first[:, None]) & (k < piece.stop[:, None]) & piece.guards[0].allows(q[:, None], k)
    assert torch.equal(inside, matrix(mask, range(len(q)), range(len(q))))


def test_too_many_pieces_are_never_a_list_cut_short():
    q = torch.arange(4 * MAX_PIECES)
    holes = parse_mask(EVENS)
    with pytest.raises(TooIrregularError):
        intervals.subtract(parse_mask("causal").intervals(q), holes.intervals(q), holes)
    with pytest.raises(TooIrregularError):
        intervals.limited(holes.intervals(q)[:1] * (MAX_PIECES + 1))
