"""Adaptive masks as values: spelling, refusals, and the static answers that they give."""

import pickle

import pytest
import torch

from hf_masking import AdaptiveSpan, Relevance, TopBlocks, parse_mask
from hf_masking.masks import FOREVER, SlidingWindow


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
