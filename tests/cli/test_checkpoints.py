"""The commands load a whole checkpoint, or name what is wrong with it."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_masking import from_pretrained, patch_model, perplexity
from hf_masking.evaluation.loading import load_tokenizer

MASK = "window:4|sinks:1"
NEEDED = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    "command",
    [("eval", "--data", "TEXT"), ("generate", "--prompt", "a", "--mask", "causal"), ("check", "--mask", "causal")],
)
def test_missing_weights_are_named(run, model_folder, text_file, tmp_path, command):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[NEEDED]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    name, *options = (text_file if argument == "TEXT" else argument for argument in command)
    code, out, err = run(name, folder, *options)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ") and f"lacks weights of LlamaForCausalLM, which would be random: {NEEDED}" in line


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "../x y"])
def test_a_name_that_is_nothing(run, tmp_path, name):
    code, _, err = run("finetune", name, "--output", tmp_path / "out", "--data", "stdlib")
    assert code == 2
    assert err.startswith(
        f"error: no tokenizer can be loaded from '{name}' (neither a folder here nor reachable on the hub"
    )


@pytest.fixture(scope="module")
def adapter(model_folder, tmp_path_factory):
    """An adapter, without a tokenizer, of a patched model."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), MASK, check=False)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore"):  # PEFT calls what Transformers has renamed
        peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_an_adapter_is_evaluated_under_its_mask(run, adapter, model_folder, text_file, tmp_path):
    code, _, _ = run("eval", adapter, "--data", text_file, "--context", "32", "--output", tmp_path / "eval.json")
    assert code == 0
    (row,) = json.loads((tmp_path / "eval.json").read_text())["rows"]
    tokens = torch.tensor(AutoTokenizer.from_pretrained(model_folder)(text_file.read_text())["input_ids"])
    expected = perplexity(from_pretrained(adapter, check=False), tokens, context=32)
    assert row["perplexity"] == pytest.approx(expected.perplexity)
    assert row["mask"] == MASK


def test_an_adapter_generates_and_is_checked(run, adapter):
    code, _, err = run("generate", adapter, "--prompt", "The", "--max-new-tokens", "3")
    assert code == 0 and f"mask    {MASK}" in err
    code, out, _ = run("check", adapter)
    assert code == 0 and "cached decoding = recomputation, its own masks" in out and "FAILED" not in out


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_an_adapter_is_not_trained(run, adapter, text_file, tmp_path, command):
    code, _, err = run(command, adapter, "--data", text_file, "--output", tmp_path / "out")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f"error: {adapter} is an adapter, and whole models are trained here; merge it"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recorded", [None, "v1"])
def test_the_tokenizer_of_an_adapters_base_is_loaded_as_the_base_is(adapter, tmp_path, monkeypatch, recorded):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": recorded}))
    asked, plain = [], AutoTokenizer.from_pretrained

    def from_pretrained(name, **where):
        asked.append(where)
        return plain(name, **where)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    load_tokenizer(str(folder), revision="v2", trust_remote_code=True)
    assert asked[-1] == {"revision": recorded or "main", "trust_remote_code": True}
