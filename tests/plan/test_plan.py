"""Plans touch what the mask allows and little more, and what they are made of is what they say."""

import pytest

from hf_masking import parse_mask
from hf_masking.masks.counting import count_pairs
from hf_masking.plan import Blocks, Diagonals, Lengths, is_causal, plan_of

# The masks that the benchmark names, and compositions of three parts.
NAMED = [
    "window:256",
    "strided:64",
    "log_sparse",
    "window:256|sinks:4",
    "strided:64|window:64",
    "window:512",
    "causal",
    "dilated:128,4",
    "causal-window:64",
    "summary:128,8",
    "block_local:128,1|summary:128,8",
    "strided:64|window:64|sinks:4",
    "log_sparse|window:64|sinks:4",
]


def over(length: int) -> Lengths:
    return Lengths(0, length, 0, length)


@pytest.mark.parametrize("spec", NAMED)
@pytest.mark.parametrize("length", [1024, 8192])
def test_a_plan_touches_little_more_than_the_mask_allows(spec, length):
    plan = plan_of(parse_mask(spec), over(length))
    allowed, block = count_pairs(parse_mask(spec), length), 64
    assert allowed <= plan.touched <= 1.25 * allowed + 2 * block * length


@pytest.mark.parametrize("spec", NAMED)
def test_the_time_of_a_plan_follows_the_allowed_pairs(spec):
    """Eight times the length may cost 64 times as much only where the mask allows 64 times as many pairs."""
    mask = parse_mask(spec)
    growth = count_pairs(mask, 16384) / count_pairs(mask, 2048)
    assert plan_of(mask, over(16384)).touched / plan_of(mask, over(2048)).touched < 1.3 * max(growth, 8)


def test_each_pattern_has_the_part_that_fits_it():
    kinds = {
        spec: [(type(part), getattr(part, "classes", None)) for part in plan_of(parse_mask(spec), over(4096)).parts]
        for spec in ("window:256", "strided:64", "offsets:0,100,900", "window:256|sinks:4")
    }
    assert kinds == {
        "window:256": [(Blocks, 1)],
        "strided:64": [(Blocks, 64)],
        "offsets:0,100,900": [(Diagonals, None)],
        "window:256|sinks:4": [(Blocks, 1), (Blocks, 1)],
    }


def test_a_plan_is_made_once_for_the_same_lengths():
    mask = parse_mask("window:16")
    assert plan_of(mask, over(100)) is plan_of(parse_mask("window:16"), over(100))
    assert plan_of(mask, over(100)) is not plan_of(mask, over(101))


@pytest.mark.parametrize(
    ("spec", "lengths", "expected"),
    [
        ("causal", over(50), True),
        ("window:50", over(50), True),
        ("window:49", over(50), False),
        ("strided:1", over(50), True),
        ("sinks:4|causal", over(50), True),
        ("window:20|causal-window:20", over(50), False),  # two pieces: cautious
        ("causal", Lengths(10, 40, 0, 50), False),  # PyTorch's is_causal starts at the first key
        ("causal", Lengths(7, 40, 7, 40), True),
        ("block_causal:4", over(50), False),
    ],
)
def test_what_counts_as_causal(spec, lengths, expected):
    assert is_causal(parse_mask(spec), lengths) is expected
