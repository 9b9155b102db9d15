"""Few queries, and keys with gaps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking.attention import masked_attention
from hf_masking.plan import Documents

from .problems import inputs, problems


@pytest.mark.parametrize("backend", ["auto", "gathered"])
@given(problem=problems())
@settings(max_examples=300)
def test_others_equal_the_reference(backend, problem):
    problem.dtype = torch.float64
    inputs = problem.inputs()
    for one, other in zip(problem.outputs(inputs, backend), problem.outputs(inputs, "reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@given(problems(), st.data())
@settings(max_examples=300)
def test_keys_with_gaps(problem, data):
    """A cache that has evicted keys: those that are left keep their positions."""
    problem.softcap, problem.sinks, problem.dtype = None, False, torch.float64
    query, key, value = problem.inputs()
    ids = torch.tensor(problem.documents or [[0] * problem.keys])
    queries = torch.arange(problem.keys - problem.queries, problem.keys)
    columns = st.integers(0, problem.keys - 1)
    evicted = data.draw(st.lists(columns, unique=True, max_size=problem.keys - problem.queries))
    kept = [column for column in range(problem.keys) if column not in evicted]
    documents = Documents.from_ids(ids, queries).of_keys(torch.tensor(kept))
    inputs = [x.clone().requires_grad_() for x in (query, key[:, :, kept], value[:, :, kept])]
    results = []
    for backend in ("reference", "sdpa", "gathered"):
        output = masked_attention(*inputs, problem.mask, documents=documents, backend=backend)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for ours in results[1:]:
        for one, other in zip(ours, results[0], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "blockwise"])
def test_one_new_token(backend):
    query, key, value = inputs(3000, batch=1)
    documents = torch.zeros(1, 3000, dtype=torch.long)
    documents[:, :7] = -1
    out = [
        masked_attention(query[:, :, -1:], key, value, "window:64|sinks:4", documents=documents, backend=name)
        for name in (backend, "reference")
    ]
    torch.testing.assert_close(*out)
