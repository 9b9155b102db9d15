"""Dense SDPA, compiled FlexAttention, and which backend runs by itself."""

import logging
import os
import shutil

import pytest
import torch
from hypothesis import given, settings

from hf_masking.attention import automatic, masked_attention

from .test_blockwise import problems

BACKENDS = ["sdpa", "blockwise", "auto"]


@given(problems())
@settings(max_examples=300)
def test_sdpa_equals_the_reference(problem):
    problem.softcap, problem.sinks, problem.dtype = None, False, torch.float64
    inputs = problem.inputs()
    for one, other in zip(problem.outputs(inputs, "sdpa"), problem.outputs(inputs, "reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@given(problems())
@settings(max_examples=300)
def test_auto_equals_the_reference(problem):
    problem.dtype = torch.float64
    inputs = problem.inputs()
    for one, other in zip(problem.outputs(inputs, "auto"), problem.outputs(inputs, "reference"), strict=True):
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
        ({"dropout": 0.1}, "it has no dropout"),
        ({"sink_logits": torch.zeros(4)}, "sink logits are not wired"),
        ({"grad": True}, "no backward on a CPU"),
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
    with pytest.raises(ValueError, match="'sdpa' does not know"):
        masked_attention(*inputs(), "window:8", backend="sdpa", **option)


@pytest.mark.parametrize(
    ("spec", "length", "options", "expected"),
    [
        ("causal", 64, {}, "sdpa"),
        ("causal", 2048, {}, "sdpa"),
        ("window:4096", 2048, {}, "sdpa"),
        ("window:16", 64, {}, "sdpa"),
        ("window:64", 4096, {}, "blockwise"),
        ("strided:16", 4096, {}, "blockwise"),
        ("causal", 64, {"dropout": 0.1}, "blockwise"),
        ("causal", 64, {"softcap": 2.0}, "blockwise"),
    ],
)
def test_auto_takes_what_is_faster(spec, length, options, expected, monkeypatch, caplog):
    chosen = []
    choose = automatic.choose
    monkeypatch.setattr(automatic, "choose", lambda *a, **k: chosen.append(choose(*a, **k)) or chosen[-1])
    automatic._say_once.cache_clear()
    query, key, value = inputs(length, batch=1, heads=1, key_heads=1, size=4)
    with caplog.at_level(logging.INFO, "hf_masking"):
        for _ in range(2):
            masked_attention(query, key, value, spec, **options)
    assert chosen == [expected] * 2
    assert sum("auto" in record.message for record in caplog.records) <= 1


def test_one_new_token_is_decoded_densely():
    query, key, value = inputs(3000, batch=1)
    documents = torch.zeros(1, 3000, dtype=torch.long)
    documents[:, :7] = -1
    out = [
        masked_attention(query[:, :, -1:], key, value, "window:64|sinks:4", documents=documents, backend=backend)
        for backend in ("auto", "reference")
    ]
    torch.testing.assert_close(*out)
