"""The table of backends: what each refuses, and that a named backend runs no other."""

import sys
from dataclasses import replace

import pytest
import torch

from hf_masking.attention import BACKENDS, flex, masked_attention
from hf_masking.plan import Documents

from .problems import inputs


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
