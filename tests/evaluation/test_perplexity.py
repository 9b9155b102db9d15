"""Perplexity against a loop that predicts one token at a time."""

import math
import re

import pytest
import torch

from hf_masking import patch_model, perplexity

from ..modeling.families import build, tokens

GRID = [
    (length, context, stride)
    for length in (14, 30, 41)
    for context in (1, 5, 13)
    for stride in {1, 3, context}
    if stride <= context
]


@pytest.fixture(scope="module")
def model():
    return build("llama").double()


@torch.no_grad()
def token_by_token(model, ids, context, stride, bos):
    """Each target in the first window that predicts it, one forward each; returns (loss, tokens read) pairs."""
    scored = []
    for target in range(0 if bos is not None else 1, len(ids)):
        for start in range(0, len(ids), stride):
            # A window reads `context` tokens from `start` on; with a BOS that is the first of them.
            read = ids[start:target] if bos is None else torch.cat([torch.tensor([bos]), ids[start:target]])
            if len(read) <= context:
                break
        logits = model(read[None], use_cache=False).logits[0, -1]
        scored.append((float(-logits.log_softmax(-1)[ids[target]]), len(read)))
    return scored


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(("length", "context", "stride"), GRID)
def test_equals_the_loop(model, length, context, stride, bos):
    ids = tokens(1, length)[0]
    expected = token_by_token(model, ids, context, stride, bos)
    result = perplexity(model, ids, context=context, stride=stride, bos_token_id=bos, batch_size=3, text_bytes=100)
    nats = sum(loss for loss, _ in expected)
    assert result.tokens == len(expected) == length - (bos is None)
    assert math.isclose(result.nats_per_token, nats / len(expected), rel_tol=1e-6)
    assert math.isclose(result.perplexity, math.exp(nats / len(expected)), rel_tol=1e-6)
    assert math.isclose(result.bits_per_byte, nats / math.log(2) / 100, rel_tol=1e-6)
    for position, mean in enumerate(result.by_position):
        there = [loss for loss, read in expected if read == position + 1]
        assert (mean is None) == (not there)
        assert mean is None or math.isclose(mean, sum(there) / len(there), rel_tol=1e-6)


def test_under_a_mask(model):
    ids = tokens(1, 40)[0]
    dense = perplexity(model, ids, context=20)
    patch_model(model, "window:3")
    try:
        masked = perplexity(model, ids, context=20)
        assert masked.perplexity != dense.perplexity
        expected = token_by_token(model, ids, 20, 20, None)
        assert math.isclose(masked.nats_per_token, sum(loss for loss, _ in expected) / 39, rel_tol=1e-6)
    finally:
        from hf_masking import unpatch_model

        unpatch_model(model)


def test_the_mode_comes_back_and_progress_is_told(model):
    seen = []
    model.train()
    model.model.layers[0].eval()
    result = perplexity(model, tokens(1, 50)[0], context=9, stride=4, on_progress=seen.append)
    assert model.training
    assert not model.model.layers[0].training
    assert sum(seen) == result.tokens == 49
    model.eval()


def test_a_mask_with_lookahead_is_refused():
    model = patch_model(build("llama"), "window:4", layers={1: "block_causal:4"}, check=False)
    with pytest.raises(ValueError, match="mask block_causal:4 looks 3 tokens ahead, so its perplexity would score"):
        perplexity(model, tokens(1, 20)[0], context=8)
    patch_model(model, "block_causal:4&causal", check=False)
    perplexity(model, tokens(1, 20)[0], context=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 20}, "the text has 20 tokens, and one context of 20 needs 21; use a longer text or a context of"),
        (
            {"context": 21, "bos_token_id": 1},
            "one context of 21 needs 21; use a longer text or a context of at most 20",
        ),
        ({"context": 8, "stride": 9}, "stride must be from 1 to the context, which is 8, got 9"),
        ({"context": 8, "stride": 0}, "which is 8, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"context": 8, "token_ids": torch.zeros(1, 20, dtype=torch.long)}, "integers of shape [tokens]"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        perplexity(model, **{"token_ids": tokens(1, 20)[0]} | arguments)
