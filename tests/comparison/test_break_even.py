"""The length from which a mask is faster than dense attention."""

import pytest

from hf_masking.comparison.break_even import break_even_length, is_known
from hf_masking.evaluation.benchmark import IS_CAUSAL, Row


def rows(ours, **more):
    made = [Row(length, "causal", IS_CAUSAL, 0, both_seconds=[2.0] * 3) for length in (512, 1024, 2048)]
    return made + [
        Row(length, "window:16", "blockwise", 0, both_seconds=[seconds] * 3, **more) for length, seconds in ours.items()
    ]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [({512: 3.0, 1024: 1.0, 2048: 1.0}, 1024), ({512: 3.0, 1024: 3.0, 2048: 3.0}, None), ({512: 0.1, 2048: 0.1}, 512)],
)
def test_the_break_even_length(ours, expected):
    assert break_even_length(rows(ours), "window:16") == expected
    assert is_known(rows(ours), "window:16")


def test_disturbed_points_are_ignored():
    quiet, disturbed = rows({512: 3.0, 1024: 1.0}), rows({2048: 9.0}, quiet_rounds=1)[3:]
    assert break_even_length(quiet + disturbed, "window:16") == 1024
    assert disturbed[0].both.disturbed and not is_known(disturbed, "window:16")
    assert not is_known(rows({512: 1.0}, quiet_rounds=0), "window:16")
