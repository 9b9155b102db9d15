"""The choice of a backend under ``backend="auto"``."""

import logging
from dataclasses import replace

import pytest
import torch

from hf_masking.adaptive import Features
from hf_masking.attention import BACKENDS, choice, dispatch, masked_attention
from hf_masking.plan import Documents, document_mask

from .problems import inputs


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
    choice._log_once.cache_clear()
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
    choice._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "hf_masking"):
        for length, dropout in ((64, 0.0), (64, 0.1), (65, 0.0), (66, 0.1)):
            masked_attention(*inputs(length), "window:9", dropout=dropout)
    assert [record.args[0] for record in caplog.records] == ["sdpa", "blockwise"]


@pytest.mark.parametrize(("length", "expected"), [(200, "sdpa"), (2048, "blockwise")])
def test_what_was_worked_out_to_choose_a_backend_serves_to_run_it(length, expected, monkeypatch):
    """Each plan, and each test of causality, is asked for once per call."""
    asked = []
    for name in ("plan_of", "is_causal"):
        original = getattr(document_mask, name)
        spy = lambda *a, name=name, original=original: asked.append(name) or original(*a)  # noqa: E731
        monkeypatch.setattr(document_mask, name, spy)
    chosen = []
    monkeypatch.setattr(dispatch, "log", lambda choice, mask: chosen.append(choice.backend))
    masked_attention(*inputs(length, batch=1, heads=1, key_heads=1), "causal-sinks:1" if length == 200 else "window:64")
    assert chosen == [expected] and sorted(asked) == ["is_causal", "plan_of"]
