"""`hf-masking eval`: what its rows are called, what it checks first, and what a failure leaves of it."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MistralConfig

from hf_masking import patch_model
from hf_masking.evaluation import WindowedText

SMALL = ("--context", "16", "--max-tokens", "65")


def save(folder, config, model_folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2(tmp_path, model_folder):
    """With 32 positions, as GPT-2 has 1,024."""
    config = GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)
    return save(tmp_path / "gpt2", config, model_folder)


@pytest.fixture
def mistral(tmp_path, model_folder):
    config = MistralConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    return save(tmp_path / "mistral", config, model_folder)


def rows(run, *arguments, code=0):
    status, out, err = run("eval", *arguments, *SMALL, "--output", "-")
    assert status == code, err
    return json.loads(out)["rows"], err


def names(rows):
    return [row["runs"] for row in rows]


def test_rows_are_called_what_ran(run, model_folder, text_file, mistral, tmp_path):
    layers = ("--mask", "causal", "--mask", "window:4", "--layer", "0=strided:2", "--data", text_file)
    measured, err = rows(run, model_folder, *layers)
    assert names(measured) == ["causal; layer 0: strided:2", "window:4; layer 0: strided:2"]
    assert [row["mask"] for row in measured] == ["causal", "window:4"]
    assert "0: strided:2" in re.sub(r"\s+", " ", err)
    assert names(rows(run, mistral, "--data", text_file)[0]) == ["causal; within the model's window of 8"]
    (row,), _ = rows(run, mistral, "--mask", "causal", "--replace-model-window", "--data", text_file)
    assert row["runs"] == "causal; without the model's own window"
    carried = shutil.copytree(model_folder, tmp_path / "carried")
    patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:5|sinks:1").save_pretrained(carried)
    assert names(rows(run, carried, "--data", text_file)[0]) == ["window:5|sinks:1"]


def test_a_window_of_the_models_own_is_set_aside(run, model_folder, text_file, mistral):
    _, err = rows(run, mistral, "--mask", "strided:8", "--data", text_file)
    assert "warning: mask strided:8: " in err and "--replace-model-window sets it aside" in err
    under, _ = rows(run, mistral, "--mask", "strided:8", "--data", text_file)
    aside, err = rows(run, mistral, "--mask", "strided:8", "--replace-model-window", "--data", text_file)
    assert under[0]["perplexity"] != aside[0]["perplexity"] and "sets it aside" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "causal", "--mask", "windw:3"], "unknown mask 'windw'"),
        (["--mask", "causal", "--layer", "1=windw:3"], "unknown mask 'windw'"),
        (["--mask", "causal", "--mask", "heads[causal; causal; causal]"], "heads"),
        (["--mask", "causal", "--mask", "block_causal:4"], "looks 3 tokens ahead"),
        (["--mask", "causal", "--layer", "2=causal"], "unknown layer 2"),
        (["--mask", "causal", "--output", "/proc/no.json"], "/proc/no.json cannot be written"),
    ],
)
def test_mistakes_are_known_before_anything_is_measured(run, model_folder, text_file, monkeypatch, arguments, message):
    def measure(self, model, batch):
        raise AssertionError("something was measured")

    monkeypatch.setattr(WindowedText, "losses", measure)
    code, out, err = run("eval", model_folder, "--data", text_file, *SMALL, *arguments)
    assert code == 2 and not out
    assert message in err


def test_rows_that_were_measured_survive_one_that_fails(run, model_folder, text_file, tmp_path, monkeypatch):
    plain = WindowedText.losses

    def losses(self, model, batch):
        if "window:3" in model.config.hf_masking["mask"]:
            raise RuntimeError("out of luck\nand more")
        return plain(self, model, batch)

    monkeypatch.setattr(WindowedText, "losses", losses)
    masks = [word for mask in ("causal", "window:5", "window:3") for word in ("--mask", mask)]
    code, out, _ = run("eval", model_folder, "--data", text_file, *SMALL, *masks, "--output", tmp_path / "x.json")
    assert code == 1
    assert "window:3 failed: RuntimeError: out of luck\n" in out
    measured = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row.get("tokens") for row in measured] == [64, 64, None]
    assert measured[2]["error"] == "RuntimeError: out of luck"


def test_more_than_a_models_positions(run, gpt2, model_folder, text_file):
    code, out, err = run("eval", gpt2, "--data", text_file, "--context", "64")
    assert (code, out) == (2, "")
    assert err == ("error: a context of 64 tokens takes 64 positions, and the model has 32; use at most 32 tokens\n")
    prompt = ("--mask", "causal", "--prompt", "abc", "--max-new-tokens")
    code, out, err = run("generate", gpt2, *prompt, "31")
    assert (code, out) == (2, "")
    assert "a prompt of 3 and --max-new-tokens 31 takes 33 positions, and the model has 32" in err
    assert run("generate", gpt2, *prompt, "30")[0] == 0
    code, _, err = run("eval", model_folder, "--data", text_file, "--context", "2200")
    assert code == 0
    assert "warning: a context of 2200 tokens takes 2200 positions, more than the 2048 that the model was made" in err


def test_a_tokenizer_that_is_not_the_models(run, tmp_path, model_folder, text_file):
    config = GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    small = save(tmp_path / "small", config, model_folder)
    message = (
        "error: the tokenizer has 256 tokens, and the model has embeddings for 100; use the model's own tokenizer\n"
    )
    for command in (("eval", small, "--data", text_file), ("generate", small, "--mask", "causal", "--prompt", "abc")):
        code, out, err = run(*command)
        assert (code, out) == (2, "") and err.endswith(message)
