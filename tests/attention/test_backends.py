"""Dense SDPA, compiled FlexAttention, and which backend runs by itself."""

import logging
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking.adaptive import Features
from hf_masking.attention import BACKENDS, automatic, flex, masked_attention
from hf_masking.plan import Documents, document_mask

from .test_blockwise import problems


@given(problems())
@settings(max_examples=300)
def test_sdpa_equals_the_reference(problem):
    problem.softcap, problem.sinks, problem.dtype = None, False, torch.float64
    inputs = problem.inputs()
    for one, other in zip(problem.outputs(inputs, "sdpa"), problem.outputs(inputs, "reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


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


def inputs(length=96, batch=2, heads=4, key_heads=2, size=16):
    generator = torch.Generator().manual_seed(0)
    counts = heads, key_heads, key_heads
    return [torch.randn(batch, count, length, size, generator=generator) for count in counts]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
@pytest.mark.parametrize(
    ("spec", "documents", "softcap"),
    [
        ("window:20|strided:30", None, None),
        ("heads[window:9; block_local:8,1|sinks:2]", [[-1] * 5 + [0] * 91, [0] * 40 + [1] * 50 + [-1] * 6], 3.0),
    ],
)
def test_flex_equals_the_reference(spec, documents, softcap):
    query, key, value = inputs()
    documents = None if documents is None else torch.tensor(documents)
    results = [
        masked_attention(query, key, value, spec, documents=documents, softcap=softcap, backend=backend)
        for backend in ("flex", "reference")
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, "it does not support dropout; use backend='auto', 'reference', 'sdpa', 'gathered', "),
        ({"sink_logits": torch.zeros(4)}, "it does not support sink_logits"),
        ({"grad": True}, "no backward pass on a CPU"),
        ({"dtype": torch.float64}, "does not compute in float64"),
        ({"size": 12}, "at least 16, got 12"),
    ],
)
def test_flex_refuses_in_words_instead_of_running_something_else(change, message):
    query, key, value = (x[..., : change.get("size")].to(change.get("dtype")) for x in inputs())
    query.requires_grad_(change.get("grad", False))
    options = {name: change[name] for name in ("dropout", "sink_logits") if name in change}
    with pytest.raises(ValueError, match=message):
        masked_attention(query, key, value, "window:8", backend="flex", **options)


@pytest.mark.parametrize("option", [{"softcap": 2.0}, {"sink_logits": torch.zeros(4)}])
def test_sdpa_refuses_what_it_does_not_know(option):
    with pytest.raises(ValueError, match="'sdpa' cannot compute this: it does not support "):
        masked_attention(*inputs(), "window:8", backend="sdpa", **option)


@pytest.mark.parametrize(
    ("spec", "length", "options", "expected", "reason"),
    [
        ("causal", 64, {}, "sdpa", "dense attention is faster for so few pairs"),
        ("window:16", 64, {}, "sdpa", "dense attention is faster for so few pairs"),
        ("causal", 2048, {}, "sdpa", "the mask is all of causal"),
        ("window:4096", 2048, {}, "sdpa", "the mask is all of causal"),
        ("causal-sinks:1", 256, {}, "sdpa", "dense attention is expected to be faster"),
        ("window:64", 4096, {}, "blockwise", "expected to be faster than dense attention"),
        ("strided:16", 4096, {}, "blockwise", "expected to be faster than dense attention"),
        ("causal", 64, {"dropout": 0.1}, "blockwise", "it computes dropout in blocks"),
        ("causal", 64, {"softcap": 2.0, "sink_logits": torch.zeros(1)}, "blockwise", "softcap and sink_logits"),
        ("causal", 64, {"documents": torch.full((1, 64), -1)}, "sdpa", "nothing but padding"),
        ("top_blocks:block=4,k=2", 64, {}, "blockwise", "the mask is adaptive"),
        ("window:64", 300, {"queries": 1}, "gathered", "a single query"),
        ("top_blocks:block=4,k=2", 300, {"queries": 1}, "gathered", "a single query"),
        ("window:64", 300, {"queries": 9, "kept": [*range(4), *range(200, 300)]}, "gathered", "have gaps"),
        (
            "adaptive_span:max=9",
            99,
            {"features": [Features(torch.ones(1, 1, 1, 1))]},
            "blockwise",
            "the mask is adaptive",
        ),
    ],
)
def test_auto_takes_what_is_faster_and_logs_once_why(spec, length, options, expected, reason, monkeypatch, caplog):
    ran, attend = [], BACKENDS[expected].attend
    spy = replace(BACKENDS[expected], attend=lambda *a, **k: ran.append(expected) or attend(*a, **k))
    monkeypatch.setitem(BACKENDS, expected, spy)
    automatic._log_once.cache_clear()
    query, key, value = inputs(length, batch=1, heads=1, key_heads=1, size=4)
    options = dict(options)
    query = query[:, :, -options.pop("queries", length) :]
    if kept := options.pop("kept", None):
        key, value = key[:, :, kept], value[:, :, kept]
        options["documents"] = Documents.single(query.shape[2], length).of_keys(torch.tensor(kept))
    with caplog.at_level(logging.INFO, "hf_masking"):
        for _ in range(2):
            masked_attention(query, key, value, spec, **options)
    assert ran == [expected] * 2
    (record,) = caplog.records
    assert f"backend 'auto' runs '{expected}' for '{spec}': " in record.message
    assert reason in record.message


def test_another_reason_is_logged_too(caplog):
    automatic._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "hf_masking"):
        for length, dropout in ((64, 0.0), (64, 0.1), (65, 0.0), (66, 0.1)):
            masked_attention(*inputs(length), "window:9", dropout=dropout)
    assert [record.args[0] for record in caplog.records] == ["sdpa", "blockwise"]


def test_a_named_backend_refuses_keys_with_gaps():
    query, key, value = inputs(9)
    documents = Documents.single(2, 9).of_keys(torch.tensor([0, 1, 6, 7, 8]))
    for backend in ("blockwise", "flex"):
        with pytest.raises(ValueError, match=f"backend '{backend}' .* positions have gaps, .*; use backend='auto', "):
            masked_attention(
                query[:, :, -2:], key[:, :, :5], value[:, :, :5], "window:3", documents=documents, backend=backend
            )


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("queries", [1, 40])
def test_a_named_backend_runs_no_other(backend, queries, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("another backend runs")

    for name, other in BACKENDS.items():
        if name != backend:
            monkeypatch.setattr(sys.modules[other.attend.__module__], "attend", refuse)
            monkeypatch.setitem(BACKENDS, name, replace(other, attend=refuse))
    if backend == "flex":
        monkeypatch.setattr(flex, "_compiled", lambda *_: lambda query, *_: query)  # to compile takes a minute
    query, key, value = inputs(40)
    masked_attention(query[:, :, -queries:], key, value, "window:9", backend=backend)


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


@pytest.mark.parametrize(("length", "expected"), [(200, "sdpa"), (2048, "blockwise")])
def test_what_was_worked_out_to_choose_a_backend_serves_to_run_it(length, expected, monkeypatch):
    """Each plan, and each test of causality, is asked for once per call."""
    asked = []
    for name in ("plan_of", "is_causal"):
        original = getattr(document_mask, name)
        spy = lambda *a, name=name, original=original: asked.append(name) or original(*a)  # noqa: E731
        monkeypatch.setattr(document_mask, name, spy)
    chosen = []
    monkeypatch.setattr(automatic, "log", lambda choice, mask: chosen.append(choice.backend))
    masked_attention(*inputs(length, batch=1, heads=1, key_heads=1), "causal-sinks:1" if length == 200 else "window:64")
    assert chosen == [expected] and sorted(asked) == ["is_causal", "plan_of"]


def test_a_refusal_names_the_backends_that_can():
    query, key, value = inputs(9)
    with pytest.raises(
        ValueError, match=r"'flex' .* dropout; use backend='auto', 'reference', 'sdpa', 'gathered', 'bl"
    ):
        masked_attention(query, key, value, "window:3", dropout=0.1, backend="flex")
    with pytest.raises(
        ValueError, match=r"it does not support softcap and sink_logits; use backend='auto', 'reference', "
    ):
        masked_attention(query, key, value, "window:3", softcap=1.0, sink_logits=torch.zeros(4), backend="sdpa")
