"""Blocks that queries pick: against brute force, with ties, in half precision."""

import pytest
import torch

from hf_masking import TopBlocks

from . import oracle


@pytest.mark.parametrize("score", ["mean", "minmax"])
@pytest.mark.parametrize("heads", [1, 3])
def test_choices_are_those_of_brute_force(score, heads):
    mask, draw = TopBlocks(3, 2, score), torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((heads, 23, 5), (23, 5)))
    chosen = mask.choose(queries, mask.summarize(keys), torch.arange(23))
    assert chosen.shape == (23, 2)
    for i in range(23):
        expected = oracle.chosen_blocks(mask, queries.tolist(), keys.tolist(), i) - {i // 3}
        assert sorted(chosen[i].tolist()) == [-1] * (2 - len(expected)) + sorted(expected), i


def test_more_blocks_than_there_are_cost_nothing():
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(1, 23, 5, generator=draw), torch.randn(23, 5, generator=draw)
    all_there, more = TopBlocks(3, 7), TopBlocks(3, 9)
    chosen = [mask.choose(queries, mask.summarize(keys), torch.arange(23)) for mask in (all_there, more)]
    assert torch.equal(*(blocks.sort(-1).values for blocks in chosen))
    assert chosen[1].shape == (23, 7)
    assert more.choose(queries[:, :2], more.summarize(keys[:2]), torch.arange(2)).tolist() == [[-1], [-1]]


@pytest.mark.parametrize("score", ["mean", "minmax"])
def test_of_equal_scores_the_later_blocks_are_chosen(score):
    mask = TopBlocks(2, 2, score)
    queries, keys = torch.ones(1, 20, 4), torch.ones(20, 4)
    chosen = mask.choose(queries, mask.summarize(keys), torch.arange(20))
    for i in range(20):
        expected = range(max(0, i // 2 - 2), i // 2)
        assert sorted(chosen[i].tolist()) == [-1] * (2 - len(expected)) + list(expected)
    # The choice of a query is the same where fewer keys are there to be scored.
    fewer = mask.choose(queries[:, 9:10], mask.summarize(keys[:10]), torch.tensor([9]))
    assert torch.equal(fewer[0].sort().values, chosen[9].sort().values)


def test_minmax_bounds_every_product():
    mask, draw = TopBlocks(4, 1), torch.Generator().manual_seed(1)
    queries, keys = torch.randn(1, 40, 6, generator=draw), torch.randn(40, 6, generator=draw)
    bounds = mask.scores(queries, mask.summarize(keys))
    products = (queries[0] @ keys.T).unflatten(1, (10, 4)).amax(-1)
    assert bool((bounds >= products - 1e-5).all())


@pytest.mark.parametrize("score", ["mean", "minmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_what_its_numbers_say(dtype, score):
    mask, draw = TopBlocks(16, 4, score), torch.Generator().manual_seed(0)
    queries = (torch.randn(4, 256, 64, generator=draw) * 30).to(dtype)
    keys = (torch.randn(256, 64, generator=draw) * 100 + 300).to(dtype)
    chosen = mask.choose(queries, mask.summarize(keys), torch.arange(256))
    exact = mask.choose(queries.double(), mask.summarize(keys.double()), torch.arange(256))
    assert float((chosen.sort().values == exact.sort().values).double().mean()) > 0.999
