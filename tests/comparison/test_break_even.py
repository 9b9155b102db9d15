"""The length from which a mask is faster than dense attention."""

import pytest

from hf_masking.comparison.break_even import pays_from
from hf_masking.evaluation.benchmark import IS_CAUSAL, Row


@pytest.mark.parametrize(
    ("ours", "expected"),
    [({512: 3.0, 1024: 1.0, 2048: 1.0}, 1024), ({512: 3.0, 1024: 3.0, 2048: 3.0}, None), ({512: 0.1, 2048: 0.1}, 512)],
)
def test_from_which_length_a_mask_pays(ours, expected):
    rows = [Row(length, "causal", IS_CAUSAL, 0, both_seconds=[2.0]) for length in (512, 1024, 2048)]
    rows += [Row(length, "window:16", "blockwise", 0, both_seconds=[seconds]) for length, seconds in ours.items()]
    assert pays_from(rows, "window:16") == expected
