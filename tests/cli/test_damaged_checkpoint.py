"""Configs, indexes and tokenizers that are damaged: one line that names what is wrong with which."""

import json
import shutil

import pytest

from .broken import MASKED

UNKNOWN = {"vocab": {"a": 0}, "unk_token": "[UNK]"}
NO_SUCH_TOKEN = {"version": "1.0", "added_tokens": [], "model": UNKNOWN | {"type": "WordLevel"}}
CONTINUED = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
NO_SUCH_PIECE = NO_SUCH_TOKEN | {"model": UNKNOWN | {"type": "WordPiece"} | CONTINUED}
LENGTH_OF_WORDS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}
NOT_ENCODED = "the tokenizer of '{model}' cannot encode the text ("


@pytest.fixture
def damaged(model_folder, tmp_path):
    """Return a function that copies the model and writes one of its JSON files, or changes entries of its config."""

    def damage(file="config.json", **entries):
        folder = shutil.copytree(model_folder, tmp_path / "damaged")
        held = json.loads((folder / file).read_text()) if file == "config.json" else {}
        (folder / file).write_text(json.dumps(held | entries))
        return folder

    return damage


def error_of(run, *arguments):
    """Return the one line that a command leaves with, and nothing else."""
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("file", "entries", "reason"),
    [
        ("tokenizer.json", NO_SUCH_TOKEN, "Exception: WordLevel error: Missing [UNK] token"),
        ("tokenizer.json", NO_SUCH_PIECE, "Exception: WordPiece error: Missing [UNK] token"),
        ("tokenizer_config.json", LENGTH_OF_WORDS, "TypeError: '>' not supported"),
    ],
)
def test_a_tokenizer_that_encodes_nothing_is_named(run, damaged, text_file, tmp_path, file, entries, reason):
    model = damaged(file, **entries)
    begins = f"error: {NOT_ENCODED.format(model=model)}{reason}"
    assert error_of(run, "eval", model, "--data", text_file).startswith(begins)
    assert error_of(run, "generate", model, "--mask", "causal", "--prompt", "b c").startswith(begins)
    streamed = ("--stream", "--data", text_file, "--eval-data", text_file, "--output", tmp_path / "run")
    assert error_of(run, "finetune", model, *streamed).startswith(begins)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"num_attention_heads": 0}, "ZeroDivisionError: integer modulo by zero"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"hidden_size": "many"}, "hidden_size"),
        (
            MASKED | {"hf_masking": {"version": 1, "mask": "window:3", "extra": {}}},
            "expected none but version, mask, layers, replace_model_window, backend, got ['extra']",
        ),
    ],
)
def test_a_wrong_config_is_no_fault_of_the_tokenizer(run, damaged, text_file, entries, reason):
    model = damaged(**entries)
    line = error_of(run, "eval", model, "--data", text_file)
    assert line.startswith(f"error: no model can be loaded from '{model}' (a folder here, but: ") and reason in line


def test_an_index_without_a_map(run, damaged, text_file):
    model = damaged("model.safetensors.index.json", metadata={})
    (model / "model.safetensors").unlink()
    assert "(a folder here, but: KeyError: 'weight_map')" in error_of(run, "eval", model, "--data", text_file)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"max_position_embeddings": -3},
            "max_position_embeddings must be at least 1, got -3; correct the config.json",
        ),
        ({"max_position_embeddings": 8}, "the checks need 12 positions and the model has 8; give another model"),
        (
            {"rope_parameters": {"rope_theta": 0, "rope_type": "default"}},
            "model.rotary_emb.inv_freq of LlamaForCausalLM is not finite, although no checkpoint holds it; correct the",
        ),
    ],
)
def test_what_the_model_cannot_run_with_is_named(run, damaged, text_file, entries, message):
    line = error_of(run, "eval", damaged(**entries), "--data", text_file, "--context", "8")
    assert line.startswith(f"error: {message}") and "check=False" not in line
