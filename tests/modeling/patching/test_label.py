"""Descriptions of what runs in a model."""

import pytest

from hf_masking import patch_model
from hf_masking.modeling import label_of, sharing_weights

from ..families import build, tokens


@pytest.mark.parametrize(
    ("family", "mask", "layers", "replace", "label"),
    [
        ("llama", "causal", {}, False, "causal"),
        ("llama", "causal", {0: "window:3"}, False, "causal; layer 0: window:3"),
        ("llama", "causal", {0: "window:3", -1: "window:3"}, False, "causal; layers 0-1: window:3"),
        ("llama", "causal", {0: "causal"}, False, "causal"),
        ("mistral", "causal", {}, False, "causal; within the model's window of 5"),
        ("mistral", "window:5", {}, False, "window:5"),
        ("mistral", "prompt|window:3", {}, False, "prompt|window:3; within the model's window of 5"),
        ("mistral", "window:3|sinks:1", {}, True, "window:3|sinks:1; without the model's own window"),
        ("gemma3", "window:9", {}, False, "window:9; layer 0 within the model's window of 5"),
        ("gemma3", "window:9", {0: "window:2"}, False, "window:9; layer 0: window:2"),
    ],
)
def test_labels(family, mask, layers, replace, label):
    model = patch_model(build(family), mask, layers=layers, replace_model_window=replace, check=False)
    assert label_of(model) == label


def test_ranges_of_layers():
    model = patch_model(
        build("llama", num_hidden_layers=7),
        "causal",
        layers={0: "window:3", 2: "window:3", 3: "window:3", 4: "window:3", 6: "strided:2"},
        check=False,
    )
    assert label_of(model) == "causal; layers 0, 2-4: window:3; layer 6: strided:2"


def test_an_unpatched_model_has_none():
    with pytest.raises(ValueError, match="is not patched"):
        label_of(build("llama"))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("carried", [None, "relevance:rank=4|sinks:1"])
def test_copies_that_share_their_weights(family, carried):
    model, ids = build(family), tokens(2, 17)
    if carried is not None:
        patch_model(model, carried, check=False)
    before = model(ids).logits
    one, other = sharing_weights(model), sharing_weights(model)
    assert {id(p) for p in model.parameters()} == {id(p) for p in one.parameters()}
    patch_model(one, "window:3", check=False)
    patch_model(other, "window:3", layers={0: "window:2"}, check=False)
    assert (label_of(one), label_of(other)) == ("window:3", "window:3; layer 0: window:2")
    for changed in (one, other):
        assert not changed(ids).logits.equal(before)
        assert changed(ids).logits.equal(patch_model(build(family), "window:3", layers=layers_of(changed))(ids).logits)
    assert model(ids).logits.equal(before)


def layers_of(model):
    return {0: "window:2"} if "layer 0" in label_of(model) else {}
