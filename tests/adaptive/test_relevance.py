"""Relevance: its rank, its threshold, the tiles that it skips, its penalty."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_masking import Relevance, parse_mask
from hf_masking.adaptive import Features, relevance
from hf_masking.adaptive.weighting import TILE
from hf_masking.masks import Causal

from ..attention.problems import LargestTensor
from .oracle import SHAPE


@given(st.floats(0, 0.4999, allow_subnormal=False).map(lambda x: round(x, 12)))
def test_thresholds_round_trip(threshold):
    assert parse_mask(str(Relevance(4, threshold))) == Relevance(4, threshold)


@pytest.mark.parametrize("rank", [13, 2**31 - 1])
def test_a_rank_above_the_hidden_size_is_refused_before_anything_is_allocated(rank):
    assert Relevance(12).module(SHAPE).query.shape == (24, 12)
    message = f"`rank` must be at most 12, the hidden size of the model, got {rank}"
    with LargestTensor() as largest, pytest.raises(ValueError, match=message):
        Relevance(rank).module(SHAPE)
    assert largest.elements == 0


@given(st.integers(1, 200), st.integers(0, 90), st.floats(0.01, 0.49), st.integers(0, 10))
def test_no_tile_with_a_weight_is_left_out(queries, more, threshold, seed):
    mask, draw = Relevance(3, threshold), torch.Generator().manual_seed(seed)
    query, key = torch.randn(1, queries, 3, generator=draw), torch.randn(1, queries + more, 3, generator=draw) * 3
    distance = torch.arange(more, queries + more)[:, None] - torch.arange(queries + more)
    weights = mask.log_weight(query[0], key[0], distance, hard=True) > -torch.inf
    with patch.object(relevance, "_ROWS", 2 * TILE):
        tiles = mask.tiles_that_count(Features(query, key), slice(0, 1), 1)
    covered = tiles.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)[:queries, : queries + more]
    assert not bool((weights & ~covered & (distance >= 0)).any())


@pytest.mark.parametrize("threshold", [1e-13, 0.1, 1e-3, 0.123456789012345])
def test_a_threshold_survives_its_spec(threshold):
    assert parse_mask(str(Relevance(16, threshold))) == Relevance(16, threshold)
    assert parse_mask(f"relevance:threshold={threshold!r}") == Relevance(16, threshold)


def test_the_penalty_of_relevance_estimates_its_density():
    torch.manual_seed(0)
    module, hidden = Relevance(3).module(SHAPE), torch.randn(1, 50, 12)
    with torch.no_grad():
        module.key.normal_()
        module.bias.fill_(-0.125)
        features = module(hidden)
        f = (features.query[:, ::2] @ features.key.mT).sigmoid()
        causal = Causal().dense(50)
        exact = float(f[..., causal].mean())
        estimates = [float(module.penalty(hidden, features)) for _ in range(400)]
    assert sum(estimates) / 400 == pytest.approx(exact, rel=0.02)
