"""The blockwise backend against the reference: outputs and gradients, and what a reference cannot show."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking.attention import fused, masked_attention
from hf_masking.plan import Documents

from ..masks.strategies import expressions
from .problems import LargestTensor, long_inputs, problems


@given(problems())
@settings(max_examples=2000)
def test_equals_the_reference(problem):
    inputs = problem.inputs()
    ours = problem.outputs(inputs, "blockwise")
    if problem.dtype.itemsize == 2:
        # Computed in float32 and rounded once: a unit in the last place, and what float32 itself errs by.
        theirs = problem.outputs([x.float() for x in inputs], "reference")
        tolerance = {"rtol": torch.finfo(problem.dtype).eps, "atol": 2e-5}
    else:
        theirs = problem.outputs(inputs, "reference")
        tolerance = {"rtol": 0, "atol": 1e-10 if problem.dtype == torch.float64 else 2e-5}
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == problem.dtype
        torch.testing.assert_close(one.to(other.dtype), other, **tolerance)


LONG = [
    "causal",
    "window:70",
    "window:64|sinks:4",
    "strided:16",
    "strided:16|window:48",
    "log_sparse",
    "causal-window:64",
    "block_local:64,1|summary:64,8",
    "dilated:24,3",
    "causal-strided:5",
    "strided:6&strided:4",
    "summary:40,3-block_local:50",
    "heads[window:64; strided:8]",
    "offsets:0,100,101,500",
]


@pytest.mark.parametrize("spec", LONG)
@pytest.mark.parametrize("queries", [700, 333])
@pytest.mark.parametrize("with_fused_kernel", [True, False])
def test_equals_the_reference_over_several_blocks_of_every_size(spec, queries, with_fused_kernel, monkeypatch):
    if not with_fused_kernel:
        monkeypatch.setattr(fused, "can_do", lambda query, value: False)
    results = []
    for backend in ("blockwise", "reference"):
        inputs = long_inputs(700, queries=queries)
        output = masked_attention(*inputs, spec, backend=backend)
        output.square().sum().backward()
        results.append([output.detach(), *(x.grad for x in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", LONG)
def test_nothing_is_as_large_as_all_pairs(spec):
    length, size = 4096, 8
    query, key, value = long_inputs(length, torch.float32)
    with LargestTensor() as largest:
        masked_attention(query, key, value, spec, backend="blockwise").sum().backward()
    assert largest.elements <= 64 * length * size < length * length


def test_the_dense_backend_is_caught_by_that():
    query, key, value = long_inputs(4096, torch.float32)
    with LargestTensor() as largest:
        masked_attention(query, key, value, "window:8", backend="reference")
    assert largest.elements > 64 * 4096 * 8


def test_gradcheck_under_dropout_with_the_same_random_numbers():
    def attend(*inputs):
        torch.manual_seed(5)
        return masked_attention(*inputs, "window:9|offsets:20,25", dropout=0.4, backend="blockwise")

    inputs = [x.detach()[:, :, :30, :3].requires_grad_() for x in long_inputs(64)]
    assert torch.autograd.gradcheck(attend, inputs)


def test_dropout_drops_the_stated_share_and_keeps_the_mean():
    # All weights of a row are equal, and every value is a unit vector of its own: the output shows each weight.
    length = 256
    query = key = torch.zeros(1, 1, length, length)
    value = torch.eye(length)[None, None]
    torch.manual_seed(0)
    total = torch.zeros(length, length)
    for _ in range(40):
        total += masked_attention(query, key, value, "window:64|offsets:100", dropout=0.25, backend="blockwise")[0, 0]
    weights = masked_attention(query, key, value, "window:64|offsets:100", backend="blockwise")[0, 0]
    mean = (total / 40 / weights)[weights > 0]
    # Each is a mean of 40 draws of 0 or 4/3: expectation 1, standard deviation sqrt(1/3 / 40).
    assert abs(mean.mean() - 1) < 5 * (1 / 3 / 40 / mean.numel()) ** 0.5
    assert abs(mean.std() - (1 / 3 / 40) ** 0.5) < 0.01


def test_dropout_is_new_each_time_and_follows_the_seed():
    inputs = long_inputs(200, torch.float32)

    def attend(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return masked_attention(*inputs, "window:32", dropout=0.5, backend="blockwise")

    assert torch.equal(attend(1), attend(1))
    assert not torch.equal(attend(1), attend())


def test_the_same_call_gives_the_same_bits():
    def run():
        inputs = long_inputs(500, torch.float32)
        output = masked_attention(*inputs, "strided:16|window:64", backend="blockwise")
        output.sum().backward()
        return [output.detach(), *(x.grad for x in inputs)]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_a_second_derivative_is_refused():
    query, key, value = long_inputs(20)
    output = masked_attention(query, key, value, "window:4", backend="blockwise")
    with pytest.raises(ValueError, match="no second derivative"):
        torch.autograd.grad(output.sum(), query, create_graph=True)


@pytest.mark.parametrize("strange", ["transposed", "expanded"])
def test_inputs_whose_last_axis_is_not_contiguous(strange):
    query, key, value = (x.detach() for x in long_inputs(300))
    if strange == "transposed":
        key, value = (x.mT.contiguous().mT for x in (key, value))
    else:
        value = value[..., :1].expand(*value.shape)
    ours = masked_attention(query, key, value, "window:40", backend="blockwise")
    torch.testing.assert_close(ours, masked_attention(query, key, value, "window:40", backend="reference"))


@given(
    expressions,
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(0, 40),
)
@settings(max_examples=500)
def test_keys_that_do_not_begin_with_the_document(mask, dropped, queries, older):
    """A cache that has forgotten the oldest keys: the first key is not position 0."""
    keys = older + queries
    positions = torch.arange(dropped, dropped + keys, dtype=torch.int32)[None]
    ids = torch.zeros_like(positions)
    documents = Documents(positions[:, older:], ids[:, older:], positions, ids)
    inputs = [torch.randn(1, 1, n, 4, dtype=torch.float64, requires_grad=True) for n in (queries, keys, keys)]
    results = []
    for backend in ("blockwise", "reference"):
        output = masked_attention(*inputs, mask, documents=documents, backend=backend)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["blockwise", "sdpa"])
def test_what_inference_leaves_in_caches_serves_training(backend):
    inputs = long_inputs(90, torch.float32)
    with torch.inference_mode():
        masked_attention(*[x.detach() for x in inputs], "offsets:1,77|strided:85", backend=backend)
    masked_attention(*inputs, "offsets:1,77|strided:85", backend=backend).sum().backward()


@pytest.mark.parametrize("spec", ["strided:2000000000", "strided:2000000000-strided:3", "window:2000000000-sinks:1"])
def test_numbers_far_beyond_the_length_cost_nothing(spec):
    inputs = long_inputs(40)
    ours = masked_attention(*inputs, spec, backend="blockwise")
    torch.testing.assert_close(ours, masked_attention(*inputs, spec, backend="reference"), rtol=0, atol=1e-10)


def test_layouts_that_are_not_contiguous():
    """Transformers hands over [batch, length, heads, size] with two axes swapped."""
    query, key, value = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in long_inputs(300))
    ours = masked_attention(query, key, value, "strided:8|window:40", backend="blockwise")
    torch.testing.assert_close(ours, masked_attention(query, key, value, "strided:8|window:40", backend="reference"))


def test_under_autocast_nothing_is_rounded_but_inputs_and_output():
    inputs = [x.detach().bfloat16().requires_grad_() for x in long_inputs(300)]
    expected = masked_attention(*inputs, "window:40", backend="blockwise")
    expected.float().sum().backward()
    gradients = [x.grad for x in inputs]
    for x in inputs:
        x.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = masked_attention(*inputs, "window:40", backend="blockwise")
        output.float().sum().backward()
    assert torch.equal(output, expected)
    assert all(torch.equal(x.grad, gradient) for x, gradient in zip(inputs, gradients, strict=True))
