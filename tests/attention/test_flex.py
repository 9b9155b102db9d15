"""Compiled FlexAttention."""

import os
import shutil

import pytest
import torch

from hf_masking.attention import masked_attention

from .problems import inputs


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
@pytest.mark.parametrize(
    ("spec", "documents", "softcap"),
    [
        ("window:20|strided:30", None, None),
        ("(prefix:17|spans:20,30,40,60|causal)-sinks:2", None, None),
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
