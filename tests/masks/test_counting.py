"""Counts of pairs and of retained keys, against brute force."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings

from hf_masking import parse_mask
from hf_masking.masks import counting
from hf_masking.masks.counting import count_pairs, keys_kept

from .oracle import COLUMNS, HORIZON, brute_force, matrix
from .strategies import expressions


@pytest.mark.parametrize("most_meetings", [2048, 0])
@given(mask=expressions)
@settings(max_examples=300)
def test_counts_equal_brute_force(most_meetings, mask):
    with patch.object(counting, "_MOST_MEETINGS", most_meetings):
        assert count_pairs(mask, COLUMNS) == brute_force(mask, COLUMNS, COLUMNS).sum()
    assert keys_kept(mask, 11) >= matrix(mask, range(11, HORIZON), range(11)).any(0).sum()


@pytest.mark.parametrize(
    "spec",
    [
        "strided:3|strided:5",
        "causal-strided:64",
        "causal-(strided:3|strided:5|strided:7)-sinks:4",
        "strided:9|summary:64,8|summary:50,3",
        "strided:7-summary:50,3-block_local:500",
        "heads[strided:2000000000|strided:1999999999|strided:3; causal]",
    ],
)
def test_lattices_that_do_not_nest_are_counted_without_looking_at_pairs(spec, monkeypatch):
    mask, length = parse_mask(spec), 1000
    expected = [int(member.dense(length).sum()) for member in mask.heads]
    monkeypatch.setattr(counting, "_all_pairs", None)
    assert [count_pairs(member, length) for member in mask.heads] == expected


def test_a_long_text_is_counted_by_formula(monkeypatch):
    monkeypatch.setattr(counting, "_all_pairs", None)
    length = 131_072
    expected = sum(length - distance for distance in range(length) if distance % 3 == 0 or distance % 5 == 0)
    assert count_pairs(parse_mask("strided:3|strided:5"), length) == expected
