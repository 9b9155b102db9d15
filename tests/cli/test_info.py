"""`hf-masking info`: which masks are in a checkpoint."""

import json
import warnings

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, MistralConfig

from hf_masking import patch_model


def test_a_checkpoint_without_a_mask(run, model_folder):
    code, out, err = run("info", model_folder)
    assert (code, err) == (0, "")
    assert "model       llama, 2 layers, 2 query heads\n" in out
    assert "masks       none; patch_model(model," in out and "own window  none\n" in out


def test_a_checkpoint_with_masks(run, tmp_path):
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    patch_model(model, "window:4|sinks:1", layers={-1: "causal"}, backend="reference").save_pretrained(tmp_path)
    code, out, err = run("info", tmp_path)
    assert code == 0, err
    assert "mask        window:4|sinks:1\n  layer 1   causal\nbackend     reference\n" in out
    assert "own window  32 tokens in layers 0-1; the masks are clipped by it\n" in out
    found = json.loads(run("info", tmp_path, "--json")[1])
    assert found["masks"] == model.config.hf_masking and found["windows"] == [32, 32] and found["base"] is None


def test_an_adapter(run, model_folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:4", check=False)
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore"):  # PEFT uses a method under its old name
        peft.get_peft_model(model, config).save_pretrained(tmp_path)
    code, out, err = run("info", tmp_path)
    assert code == 0, err
    assert f"adapter of  {model_folder}\n" in out and "mask        window:4\n" in out


def test_no_checkpoint(run):
    code, out, err = run("info", "nowhere/model")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: no config can be loaded from 'nowhere/model'")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(num_hidden_layers=2), "a mamba model has no attention heads, so no mask can be put into it"),
        (LlamaConfig(num_hidden_layers=-1), "the model has -1 layers; correct num_hidden_layers in its config.json"),
    ],
)
def test_a_model_without_attention(run, tmp_path, config, message):
    config.save_pretrained(tmp_path)
    for more in ((), ("--json",)):
        assert run("info", tmp_path, *more) == (2, "", f"error: {tmp_path}: {message}\n")
