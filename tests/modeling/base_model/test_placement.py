"""Models without weights yet, and models whose weights accelerate keeps elsewhere."""

import pytest
import torch
from accelerate import disk_offload, init_empty_weights
from transformers import AutoModelForCausalLM

from hf_masking import check_model, patch_model
from hf_masking.modeling import layer_masks

from ..families import CONFIGS, build, tokens

SPECS = [
    "window:4|sinks:1",
    "strided:3|window:2",
    "block_local:4,1",
    "causal-(window:6-window:2)",
    "heads[window:4; causal]",
    "prefix:3|causal",
    "adaptive_span:max=20|sinks:1",
    "top_blocks:block=4,k=2",
]


def meta():
    return torch.device("meta")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("context", [meta, init_empty_weights])
def test_a_model_without_weights_is_patched(spec, context):
    with context():
        model = AutoModelForCausalLM.from_config(CONFIGS["mistral"])
        patch_model(model, spec, check=False)
    assert len(layer_masks(model)) == 2
    assert all(parameter.is_meta for parameter in model.parameters())


def test_weights_that_are_loaded_later_run_under_the_mask():
    whole = patch_model(build("llama"), "window:4|sinks:1", check=False)
    with meta():
        model = patch_model(AutoModelForCausalLM.from_config(CONFIGS["llama"]), "window:4|sinks:1", check=False)
    with pytest.raises(ValueError, match=r"the weights of model\.embed_tokens are not loaded .*; load them first, or"):
        check_model(model)
    model.to_empty(device="cpu").load_state_dict(whole.state_dict())
    # Not among the weights: what Transformers works out when it makes a model.
    model.model.rotary_emb = whole.model.rotary_emb
    assert check_model(model.eval()).passed
    assert torch.equal(model(tokens(2, 17)).logits, whole(tokens(2, 17)).logits)


def test_the_check_asks_for_weights():
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with pytest.raises(ValueError, match=r"the checks run the model, and the weights of .* patch with check=False"):
        patch_model(model, "window:4|sinks:1")
    assert not layer_masks(model)


@pytest.mark.parametrize("spec", ["window:4|sinks:1", "adaptive_span:max=20|sinks:1", "relevance:rank=3|sinks:1"])
def test_offloaded_weights(spec, tmp_path):
    """accelerate keeps them on the meta device between two calls."""
    torch.manual_seed(0)  # what relevance starts from
    expected = patch_model(build("llama"), spec)(tokens(2, 17)).logits
    model = build("llama")
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    torch.manual_seed(0)
    patch_model(model, spec)
    torch.testing.assert_close(model(tokens(2, 17)).logits, expected)
