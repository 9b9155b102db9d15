"""Every answer of every mask against brute force."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import parse_mask
from hf_masking.masks import FOREVER, Tile

from .oracle import COLUMNS, HORIZON, ROWS, allowed, brute_force, matrix
from .strategies import expressions, patterns


@given(expressions)
@settings(max_examples=2000)
def test_allows_equals_brute_force(mask):
    assert torch.equal(mask.dense(ROWS, COLUMNS), brute_force(mask))


@given(expressions, st.integers(0, 20))
@settings(max_examples=200)
def test_dense_of_the_last_queries(mask, offset):
    assert torch.equal(mask.dense(3, COLUMNS, offset), brute_force(mask)[offset : offset + 3])


ranges = st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda r: (r[0], r[0] + r[1]))


def tile_of(mask, q_range, k_range):
    return int(mask.tiles(*(torch.tensor(bound) for bound in (*q_range, *k_range))))


def true_tile(mask, q_range, k_range):
    inside = matrix(mask, range(*q_range), range(*k_range))
    return Tile.NONE if not inside.any() else Tile.ALL if inside.all() else Tile.SOME


@given(patterns, ranges, ranges)
@settings(max_examples=2000)
def test_tiles_of_patterns_are_exact(mask, q_range, k_range):
    assert tile_of(mask, q_range, k_range) == true_tile(mask, q_range, k_range)


@given(expressions, ranges, ranges)
@settings(max_examples=2000)
def test_tiles_of_compositions_are_sound(mask, q_range, k_range):
    assert tile_of(mask, q_range, k_range) in (true_tile(mask, q_range, k_range), Tile.SOME)


def last_readers(mask, keys):
    """Per key the greatest query before HORIZON that may attend to it, -1 if none does."""
    readers = matrix(mask, range(HORIZON), keys)
    return torch.where(readers, torch.arange(HORIZON)[:, None], -1).amax(0)


@given(patterns, st.integers(0, 40))
@settings(max_examples=2000)
def test_last_reader_of_patterns_is_exact(mask, key):
    answer, truth = int(mask.last_reader(torch.tensor(key))), int(last_readers(mask, [key]))
    if answer < HORIZON:
        assert answer == truth
    elif answer < FOREVER:
        assert allowed(mask, answer, key)
    else:
        assert any(allowed(mask, far, key) for far in range(10**6, 10**6 + 10))


@given(expressions, st.integers(0, 40))
@settings(max_examples=2000)
def test_last_reader_is_never_too_small(mask, key):
    assert (mask.last_reader(torch.tensor(key)) >= last_readers(mask, [key])).all()


def greatest_lookahead(mask):
    pairs = brute_force(mask, 21, 21).nonzero()
    return max([0, *(pairs[:, 1] - pairs[:, 0]).tolist()])


@given(patterns)
@settings(max_examples=2000)
def test_lookahead_of_patterns_is_exact(mask):
    assert mask.lookahead == greatest_lookahead(mask)


@given(expressions)
@settings(max_examples=2000)
def test_lookahead_is_never_too_small(mask):
    assert mask.lookahead >= greatest_lookahead(mask)


@given(expressions)
@settings(max_examples=200)
def test_masks_are_values(mask):
    for twin in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert twin == mask and hash(twin) == hash(mask)


def test_answers_do_not_overflow_on_int32_positions():
    far = torch.tensor([FOREVER - 2], dtype=torch.int32)
    for mask in map(parse_mask, (f"window:{FOREVER}", f"block_local:{FOREVER},3", f"dilated:{FOREVER},{FOREVER}")):
        assert mask.allows(far, far).all() and mask.allows(far, torch.tensor([0], dtype=torch.int32)).all() == (
            mask.name != "dilated"
        )
        assert mask.last_reader(far) == FOREVER


# Laws: two expressions that must be the same set.
LAWS = [
    ("window:4|window:4", "window:4"),
    ("window:4&causal", "window:4"),
    ("window:4|causal", "causal"),
    ("window:4|window:4&sinks:2", "window:4"),
    ("window:4&(window:4|sinks:2)", "window:4"),
    (f"window:{ROWS}", "causal"),
    ("strided:1", "causal"),
    ("block_causal:1", "causal"),
    ("block_causal:5&causal", "causal"),
    ("dilated:3,1", "window:3"),
    (f"dilated:{ROWS},4", "strided:4"),
    ("summary:3,3", "causal"),
    ("offsets:0,1,2", "window:3"),
    ("causal-(causal-sinks:3)", "sinks:3"),
    ("causal-window:3-sinks:2", "causal-(window:3|sinks:2)"),
    ("strided:4&strided:6", "strided:12"),
    ("block_local:5,9", "causal"),
]


@pytest.mark.parametrize(("left", "right"), LAWS)
def test_laws(left, right):
    assert torch.equal(parse_mask(left).dense(ROWS), parse_mask(right).dense(ROWS))
