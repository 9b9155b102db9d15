"""Checkpoints: a mask, its guard and all weights, or a message."""

import json
import logging
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GptOssConfig,
    LlamaForSequenceClassification,
)

from hf_masking import from_pretrained, patch_model, unpatch_model
from hf_masking.modeling import layer_masks, load

from .families import CONFIGS, build, tokens

MASK = "window:4|sinks:1"
NEEDED = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A patched LLaMA."""
    patch_model(build("llama"), MASK, check=False).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def logits(model):
    with torch.no_grad():
        return model(tokens(2, 17)).logits


@pytest.mark.parametrize("read", [from_pretrained, load])
def test_missing_weights_are_refused_by_name(folder, read):
    edit_weights(folder, lambda weights: {name: weights[name] for name in weights if name != NEEDED})
    with pytest.raises(ValueError, match=f"lacks weights of LlamaForCausalLM, which would be random: {NEEDED}; give a"):
        read(folder)


def test_weights_of_another_shape_are_refused(folder):
    edit_weights(folder, lambda weights: weights | {NEEDED: torch.zeros(3, 3)})
    with pytest.raises(RuntimeError, match="mismatch"):  # Transformers' own words
        from_pretrained(folder)


def test_a_model_with_another_head_is_loaded_as_itself(tmp_path):
    config = CONFIGS["llama"].__class__.from_dict(CONFIGS["llama"].to_dict())
    model = LlamaForSequenceClassification(config).eval()
    patch_model(model, MASK).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"random: lm_head\.weight; give a whole checkpoint or auto_class=transformers\.LlamaForSequenceClassif",
    ):
        from_pretrained(tmp_path)
    for auto_class in (AutoModelForSequenceClassification, LlamaForSequenceClassification):
        loaded = from_pretrained(tmp_path, auto_class=auto_class)
        assert layer_masks(loaded) == layer_masks(model)
        assert torch.equal(logits(loaded), logits(model))


def test_missing_weights_where_nobody_says_which_class_wrote_them(folder):
    edit_weights(folder, lambda weights: {name: weight for name, weight in weights.items() if name != NEEDED})
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"which would be random: .*; give a whole checkpoint \(to train"):
        from_pretrained(folder)


def test_tied_weights_are_not_missing_and_unused_ones_are_told(tmp_path, caplog):
    model = patch_model(build("gpt2"), MASK, check=False)  # its head is its embedding
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "hf_masking"):
        assert torch.equal(logits(load(tmp_path)), logits(model))
        assert "holds weights" not in caplog.text
        edit_weights(tmp_path, lambda weights: weights | {"score.weight": torch.zeros(2, 24)})
        load(tmp_path)
    assert "holds weights that GPT2LMHeadModel does not use: score.weight" in caplog.text


@pytest.mark.parametrize("implementation", ["sdpa", "eager", None])
def test_a_model_that_was_saved_without_its_mask_carries_none(folder, tmp_path, caplog, implementation):
    """Transformers keeps the entry and drops the name of the attention: it loads such a checkpoint as a dense model."""
    again = tmp_path / "again"
    options = {} if implementation is None else {"attn_implementation": implementation}
    AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(again)
    dense = logits(AutoModelForCausalLM.from_pretrained(again))
    with pytest.raises(ValueError, match="carries no mask"), caplog.at_level(logging.WARNING, "hf_masking"):
        from_pretrained(again)
    assert re.search(r"carries no mask: its model was saved while 'window:4\|sinks:1' was not in force", caplog.text)
    model = load(again)
    assert not layer_masks(model)
    assert torch.equal(logits(model), dense)
    model.save_pretrained(again)
    assert "hf_masking" not in (again / "config.json").read_text()


def test_a_name_without_an_entry_is_refused(folder):
    edit_config(folder, hf_masking=None)
    with pytest.raises(
        ValueError, match=r"has lost its mask: its config\.json names attn_implementation 'hf_masking\.from_pretrained'"
    ):
        load(folder)


def test_transformers_alone_names_the_call_that_loads(folder):
    """Before any of our names is used, and after: importing the package registers nothing."""
    script = f"""
import hf_masking
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(folder)!r})
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 'Specified `attn_implementation="hf_masking.from_pretrained"` is not supported' in done.stdout
    with pytest.raises(ValueError, match=r"has no mask; load the checkpoint with hf_masking\.from_pretrained\(path\)"):
        logits(AutoModelForCausalLM.from_pretrained(folder))
    logits(patch_model(AutoModelForCausalLM.from_pretrained(folder)))


def test_a_config_that_is_given_counts(folder):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert layer_masks(from_pretrained(folder, config=config, check=False))
    assert layer_masks(from_pretrained(folder, config=str(folder), check=False))


@pytest.fixture(scope="module")
def gpt_oss():
    """A class without SDPA."""
    shared = {name: value for name, value in CONFIGS["mistral"].to_dict().items() if name in GptOssConfig().to_dict()}
    shared = {
        name: value for name, value in shared.items() if name not in ("model_type", "layer_types", "rope_parameters")
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GptOssConfig(**shared, num_local_experts=2, num_experts_per_tok=1)).eval()


def test_a_class_without_sdpa_is_loaded_and_restored(gpt_oss, tmp_path):
    dense = logits(gpt_oss)
    masked = logits(patch_model(gpt_oss, MASK, check=False))
    gpt_oss.save_pretrained(tmp_path)
    assert torch.equal(logits(unpatch_model(gpt_oss)), dense)
    model = from_pretrained(tmp_path, check=False)
    assert torch.equal(logits(model), masked)
    assert torch.equal(logits(unpatch_model(model)), dense)
    alone = patch_model(AutoModelForCausalLM.from_pretrained(tmp_path), check=False)
    assert torch.equal(logits(alone), masked)
    assert torch.equal(logits(unpatch_model(alone)), dense)
    assert alone.config._attn_implementation == "eager"
    alone.save_pretrained(tmp_path / "plain")
    assert "hf_masking" not in (tmp_path / "plain" / "config.json").read_text()
