"""The masks as values: spelling, refusals, what they are equal to, and what they promise to the parts of a plan."""

import pickle
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_masking import AdaptiveSpan, Relevance, TopBlocks, parse_mask
from hf_masking.adaptive import ADAPTIVE, Features, LayerShape, relevance
from hf_masking.adaptive.weighting import TILE
from hf_masking.masks import FOREVER, Causal, SlidingWindow

from ..attention.problems import LargestTensor
from . import oracle

SHAPE = LayerShape(hidden_size=12, query_heads=4, key_heads=2, head_size=3)


@pytest.mark.parametrize(
    ("spec", "mask"),
    [
        ("adaptive_span:max=1024", AdaptiveSpan(1024)),
        ("adaptive_span:max=1024,ramp=8", AdaptiveSpan(1024, 8)),
        ("adaptive_span:max=64,dynamic=true", AdaptiveSpan(64, dynamic=True)),
        ("top_blocks:block=32,k=8", TopBlocks(32, 8)),
        ("top_blocks:block=32,k=8,score=mean", TopBlocks(32, 8, "mean")),
        ("relevance", Relevance()),
        ("relevance:rank=4,threshold=0.25", Relevance(4, 0.25)),
        ("adaptive_span:max=9|sinks:4", AdaptiveSpan(9) | parse_mask("sinks:4")),
        ("(adaptive_span:max=9&relevance)|sinks:4", AdaptiveSpan(9) & Relevance() | parse_mask("sinks:4")),
    ],
)
def test_specs(spec, mask):
    assert parse_mask(spec) == mask
    assert parse_mask(str(mask)) == mask
    assert str(parse_mask(str(mask))) == str(mask)
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert hash(parse_mask(spec)) == hash(mask)


def test_positional_arguments_are_understood_too():
    assert parse_mask("top_blocks:32,8,mean") == TopBlocks(32, 8, "mean")
    assert parse_mask("adaptive_span:64,16,true") == AdaptiveSpan(64, 16, True)


@given(st.floats(0, 0.4999, allow_subnormal=False).map(lambda x: round(x, 12)))
def test_thresholds_round_trip(threshold):
    assert parse_mask(str(Relevance(4, threshold))) == Relevance(4, threshold)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adaptive_span", "missing a required argument: 'max'"),
        ("adaptive_span:max=0", "`max` must be an integer from 1"),
        ("adaptive_span:max=2147483646,ramp=1", "`max` must be an integer from 1 to 16777216, got 2147483646"),
        ("adaptive_span:max=1,ramp=2147483646", "`ramp` must be an integer from 1 to 16777216, got 2147483646"),
        ("adaptive_span:max=8,ramp=0", "`ramp` must be an integer from 1"),
        ("adaptive_span:max=8,dynamic=maybe", "`dynamic` must be true or false, got 'maybe'"),
        ("top_blocks:block=8", "missing a required argument: 'k'"),
        ("top_blocks:block=8,k=2,score=max", "`score` must be mean or minmax, got 'max'"),
        ("relevance:threshold=0.7", "`threshold` must be a number from 0 to below 0.5, got 0.7"),
        ("relevance:rank=2.5", "`rank` must be an integer"),
        ("adaptive_span:max=8|relevance", "a union of two adaptive masks cannot be computed"),
        ("adaptive_span:max=8&(relevance|sinks:4)", "write the static part outside"),
        ("adaptive_span:max=8&adaptive_span:max=9", "may appear once"),
        ("causal-adaptive_span:max=8", "only a static mask can be subtracted"),
        ("heads[adaptive_span:max=8; causal]", "differs by head itself"),
        ("adaptive_spam:max=8", "did you mean 'adaptive_span'?"),
    ],
)
def test_what_cannot_be_is_refused_in_words(spec, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(").replace("?", r"\?")):
        parse_mask(spec)


@pytest.mark.parametrize("rank", [13, 2**31 - 1])
def test_a_rank_above_the_hidden_size_is_refused_before_anything_is_allocated(rank):
    assert Relevance(12).module(SHAPE).query.shape == (24, 12)
    message = f"`rank` must be at most 12, the hidden size of the model, got {rank}"
    with LargestTensor() as largest, pytest.raises(ValueError, match=message):
        Relevance(rank).module(SHAPE)
    assert largest.elements == 0


@pytest.mark.parametrize("spec", ["adaptive_span:max=8", "top_blocks:block=4,k=2|sinks:1", "relevance&window:8"])
def test_questions_about_pairs_are_refused(spec):
    mask, one = parse_mask(spec), torch.tensor([1])
    for ask in (lambda: mask.allows(one, one), lambda: mask.tiles(one, one, one, one), lambda: mask.dense(4)):
        with pytest.raises(ValueError, match="depends on the content; effective_mask"):
            ask()
    assert mask.is_adaptive
    assert mask.lookahead == 0


def test_static_answers_are_bounds():
    k = torch.arange(20)
    assert torch.equal(AdaptiveSpan(8, 4).last_reader(k), SlidingWindow(12).last_reader(k))
    assert bool((TopBlocks(4, 2).last_reader(k) == FOREVER).all())
    assert parse_mask("relevance&window:8|sinks:1").normal_form().bound == parse_mask("sinks:1|causal&window:8")


MASKS = ["{}", "{}|sinks:2", "{}&window:9|sinks:1", "({}-sinks:3)|window:2", "{}&strided:2", "({}|sinks:1)-window:1"]


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("leaf", [*ADAPTIVE, "adaptive_span&relevance"])
def test_the_normal_form_is_the_definition(form, leaf):
    """Weights of random content, pair by pair: by the operators, and by the normal form."""
    specs = {
        "adaptive_span": "adaptive_span:max=7,ramp=3",
        "top_blocks": "top_blocks:block=3,k=2",
        "relevance": "relevance:rank=2",
    }
    both = "(" + "&".join(specs[name] for name in leaf.split("&")) + ")"
    mask = parse_mask(form.format(both))
    draw = torch.Generator().manual_seed(0)
    content = {name: torch.rand(17, 17, generator=draw).tolist() for name in specs}

    def of(leaf, i, j):
        # A span is 0 outside of its envelope, whatever is learned.
        return content[leaf.name][i][j] * float(leaf.envelope.allows(torch.tensor(i), torch.tensor(j)))

    graded = mask.normal_form()
    for i in range(17):
        for j in range(17):
            full = 0.0 if graded.full is None else oracle.weight(graded.full, i, j, of)
            product = oracle.weight(graded.domain, i, j, of)
            for each in graded.adaptive:
                product *= of(each, i, j) if j <= i else 0.0
            assert max(full, product) == pytest.approx(oracle.weight(mask, i, j, of)), (i, j)


@pytest.mark.parametrize(
    ("mask", "lowest"), [(AdaptiveSpan(50), 1.0), (AdaptiveSpan(50, dynamic=True), 1.0), (Relevance(3), 0.999)]
)
def test_what_learns_starts_as_full_attention(mask, lowest):
    module, hidden = mask.module(SHAPE).eval(), torch.randn(2, 40, 12) * 5
    features = module(hidden)
    key = None if features.key is None else features.key.repeat_interleave(2, 1)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    weights = mask.log_weight(features.query, key, distance, hard=True).exp().expand(2, 4, 40, 40).detach()
    assert lowest <= float(weights.min()) <= float(weights.max()) <= 1


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


def test_a_span_that_went_too_far_comes_back():
    module = AdaptiveSpan(100).module(SHAPE)
    with torch.no_grad():
        module.share.copy_(torch.tensor([1.5, -0.5, 0.25, 1.0]))
    spans = module(torch.zeros(1, 1, 12)).query
    assert spans.flatten().tolist() == [100, 0, 25, 100]
    # A descent lowers what has a positive gradient: the first may come back, the second may not go on.
    spans.sum().backward()
    assert module.share.grad.tolist() == [100, 0, 100, 100]
    module.share.grad = None
    (-module(torch.zeros(1, 1, 12)).query.sum()).backward()
    assert module.share.grad.tolist() == [0, -100, -100, -100]


def test_a_dynamic_span_at_its_longest_can_get_shorter():
    module = AdaptiveSpan(100, dynamic=True).module(SHAPE)
    with torch.no_grad():
        module.bias.fill_(0.01)
    module.penalty(None, module(torch.zeros(1, 3, 12))).backward()
    assert bool((module.bias.grad > 0).all())


@pytest.mark.parametrize("score", ["mean", "minmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_what_its_numbers_say(dtype, score):
    mask, draw = TopBlocks(16, 4, score), torch.Generator().manual_seed(0)
    queries = (torch.randn(4, 256, 64, generator=draw) * 30).to(dtype)
    keys = (torch.randn(256, 64, generator=draw) * 100 + 300).to(dtype)
    chosen = mask.choose(queries, mask.summarize(keys), torch.arange(256))
    exact = mask.choose(queries.double(), mask.summarize(keys.double()), torch.arange(256))
    assert float((chosen.sort().values == exact.sort().values).double().mean()) > 0.999


@pytest.mark.parametrize("threshold", [1e-13, 0.1, 1e-3, 0.123456789012345])
def test_a_threshold_survives_its_spec(threshold):
    assert parse_mask(str(Relevance(16, threshold))) == Relevance(16, threshold)
    assert parse_mask(f"relevance:threshold={threshold!r}") == Relevance(16, threshold)


@pytest.mark.parametrize("mask", [AdaptiveSpan(50), AdaptiveSpan(50, dynamic=True), Relevance(3)])
def test_a_penalty_makes_the_mask_let_less_through(mask):
    torch.manual_seed(0)
    module, hidden = mask.module(SHAPE), torch.randn(1, 64, 12)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    first = last = float(module.penalty(hidden, module(hidden)).detach())
    for _ in range(200):
        penalty = module.penalty(hidden, module(hidden))
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        last = float(penalty.detach())
    assert first > 0.99
    assert last < 0.1


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
