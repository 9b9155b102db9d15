"""`masked_attention` against the definition, one query at a time, and against the textbook."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import parse_mask
from hf_masking.attention import masked_attention
from hf_masking.plan import Documents

from ..masks.oracle import allowed
from ..masks.strategies import expressions

BATCH, QUERY_HEADS, KEY_HEADS, KEYS, HEAD, VALUE = 2, 6, 3, 11, 5, 7


def inputs(queries=KEYS, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(3)
    shapes = (QUERY_HEADS, queries, HEAD), (KEY_HEADS, KEYS, HEAD), (KEY_HEADS, KEYS, VALUE)
    tensors = [torch.randn(BATCH, *shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_(requires_grad) for tensor in tensors]


def by_definition(query, key, value, mask, ids):
    """A loop over single queries that looks only at the keys it may see."""
    output = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    for row in range(BATCH):
        positions = [ids[row][:column].count(ids[row][column]) for column in range(KEYS)]
        for head in range(QUERY_HEADS):
            key_head = head // (QUERY_HEADS // KEY_HEADS)
            for index in range(query.shape[2]):
                column = KEYS - query.shape[2] + index
                seen = [
                    k
                    for k in range(KEYS)
                    if ids[row][column] == ids[row][k] >= 0 and allowed(mask, positions[column], positions[k])
                ]
                if seen:
                    scores = key[row, key_head, seen] @ query[row, head, index] / HEAD**0.5
                    output[row, head, index] = scores.softmax(0) @ value[row, key_head, seen]
    return output


@given(
    expressions,
    st.integers(1, KEYS),
    st.lists(st.lists(st.integers(-1, 2), min_size=KEYS, max_size=KEYS), min_size=BATCH, max_size=BATCH),
)
@settings(max_examples=100)
def test_equals_the_definition(mask, queries, ids):
    query, key, value = inputs(queries)
    output = masked_attention(query, key, value, mask, documents=torch.tensor(ids), backend="reference")
    torch.testing.assert_close(output, by_definition(query, key, value, mask, ids), rtol=0, atol=1e-12)


def test_gradients_equal_those_of_the_definition():
    mask, ids = parse_mask("offsets:1,3|sinks:1"), [[0] * KEYS, [-1, -1, 0, 0, 0, -1, 0, 1, 1, 1, 1]]
    ours, theirs = inputs(requires_grad=True), inputs(requires_grad=True)
    weight = torch.randn(BATCH, QUERY_HEADS, KEYS, VALUE, dtype=torch.float64)
    (masked_attention(*ours, mask, documents=torch.tensor(ids), backend="reference") * weight).sum().backward()
    (by_definition(*theirs, mask, ids) * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-12)


def causal_attention(query, key, value):
    """The textbook: batched matmul, -inf above the diagonal, softmax."""
    scores = torch.bmm(query, key.transpose(1, 2)) / query.shape[-1] ** 0.5
    future = torch.triu(torch.ones(scores.shape[-2:], dtype=torch.bool), diagonal=1)
    return torch.bmm(scores.masked_fill(future, float("-inf")).softmax(-1), value)


def test_the_textbooks_causal_attention():
    query, key, value = (torch.randn(4, 13, 8) for _ in range(3))
    output = masked_attention(query[:, None], key[:, None], value[:, None], "causal")[:, 0]
    torch.testing.assert_close(output, causal_attention(query, key, value))


def test_multiplying_scores_by_the_mask_is_not_masking():
    """softmax(QK' * M) gives an excluded key weight exp(0), so the future leaks; -inf gives it nothing."""
    query, key, value = (torch.randn(1, 1, 7, 8, dtype=torch.float64) for _ in range(3))
    mask = parse_mask("causal").dense(7)

    def multiplied(value):
        return (query @ key.transpose(-2, -1) / 8**0.5 * mask).softmax(-1) @ value

    changed = value.clone()
    changed[..., -1, :] += 1.0
    assert (multiplied(changed) - multiplied(value))[..., :-1, :].abs().min() > 0.01
    before, after = (masked_attention(query, key, v, "causal") for v in (value, changed))
    assert torch.equal(before[..., :-1, :], after[..., :-1, :])


@pytest.mark.parametrize("backend", ["reference", "sdpa", "blockwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_without_keys_gives_zero_and_no_nan(dtype, backend):
    query, key, value = inputs(dtype=dtype, requires_grad=True)
    documents = torch.full((BATCH, KEYS), -1)
    documents[1, 4:] = 0
    output = masked_attention(query, key, value, "offsets:2", documents=documents, backend=backend)
    output.sum().backward()
    assert (output[0] == 0).all() and (output[1, :, :6] == 0).all() and (output[1, :, 6:] != 0).any()
    for tensor in (query, key, value):
        assert torch.isfinite(tensor.grad).all() and (tensor.grad[0] == 0).all()


def test_dropout_drops_weights_and_keeps_their_mean():
    query, key, value = (torch.zeros(1, 1, 400, 1), torch.zeros(1, 1, 400, 1), torch.ones(1, 1, 400, 1))
    torch.manual_seed(0)
    output = masked_attention(query, key, value, "causal", dropout=0.25)
    assert output[0, 0, 0] in (0.0, 1 / 0.75)
    assert abs(output[0, 0, 200:].mean() - 1) < 0.01 and output[0, 0, 200:].std() > 0.01


def test_softcap_and_sink_logits():
    query, key, value = inputs()
    scores = 2 * torch.tanh(query @ key.repeat_interleave(2, 1).transpose(-2, -1) / HEAD**0.5 / 2)
    scores = scores.masked_fill(~parse_mask("causal").dense(KEYS), -torch.inf).exp()
    sinks = torch.linspace(-1, 1, QUERY_HEADS, dtype=torch.float64)
    weights = scores / (scores.sum(-1, keepdim=True) + sinks.exp()[None, :, None, None])
    output = masked_attention(query, key, value, "causal", softcap=2.0, sink_logits=sinks)
    torch.testing.assert_close(output, weights @ value.repeat_interleave(2, 1))


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-60])
@pytest.mark.parametrize("backend", ["sdpa", "blockwise", "auto"])
@pytest.mark.parametrize("mask", ["window:99", "window:5|sinks:1"])
def test_a_scale_that_is_not_positive(scale, backend, mask):
    """Under `is_causal` PyTorch's CPU kernel multiplies its -inf by the scale, if keys and values have one size."""
    query, key, _ = inputs(dtype=torch.float32, requires_grad=True)
    results = []
    for name in (backend, "reference"):
        output = masked_attention(query, key, key, mask, scale=scale, backend=name)
        results.append([output, *torch.autograd.grad(output.square().sum(), (query, key))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backend": "fast"},
            "unknown backend 'fast'; expected 'auto' or one of 'reference', 'sdpa', 'gathered', 'blockwise', 'flex'",
        ),
        ({"documents": torch.zeros(BATCH, 3, dtype=torch.long)}, "documents must be integers of shape [2, 11]"),
        ({"documents": torch.ones(BATCH, KEYS)}, "got torch.float32"),
        (
            {"mask": "heads[causal; causal; causal; causal]"},
            "gives 4 groups of heads, which do not divide 6 query heads",
        ),
        ({"softcap": 0.0}, "softcap must be a finite number above 0, got 0.0"),
        ({"softcap": float("inf")}, "softcap must be a finite number above 0, got inf"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan; leave it out for 1 / sqrt(head size)"),
        ({"scale": float("-inf")}, "scale must be a finite number, got -inf"),
        ({"sink_logits": torch.zeros(2)}, "sink_logits must have shape [6] (query heads), got [2]"),
        (
            {"documents": Documents.from_ids(torch.zeros(3, KEYS), torch.arange(KEYS))},
            "documents must have 1 or 2 rows",
        ),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"mask": "windo:3"}, "did you mean 'window'?"),
        ({"query": torch.zeros(2, 4, 3, 5)}, "must be a multiple of the number of key heads"),
        ({"query": torch.zeros(2, 6, 12, 5)}, "more queries than keys"),
        ({"query": torch.zeros(2, 6, 11, 4)}, "head size must agree"),
        ({"query": torch.zeros(6, 11, 5)}, "expected [batch, heads, length, head size]"),
    ],
)
def test_wrong_arguments(change, message):
    query, key, value = inputs()
    arguments = {"query": query, "key": key, "value": value, "mask": "causal"} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        masked_attention(**arguments)
