"""A folder that holds something else is not written into, and the message says what differs."""

import json

import pytest

from .test_text_input import RUN


@pytest.fixture
def finetuned(run, model_folder, text_file, monkeypatch):
    """Fine-tune a model in the folder `out`; return the arguments."""
    monkeypatch.chdir(text_file.parent)
    arguments = ("finetune", model_folder, *RUN, "--data", text_file)
    code, _, err = run(*arguments)
    assert code == 0, err
    return arguments


def compare(run, model_folder, text_file, *more):
    options = ("--mask", "causal", "--data", text_file, "--context", "16", "--steps", "1", "--eval-tokens", "65")
    return run("compare", model_folder, *options, "--output", "out", *more)


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_fine_tuning_is_no_comparison(run, model_folder, text_file, finetuned, more):
    code, out, err = compare(run, model_folder, text_file, *more)
    assert (code, out) == (2, "")
    assert err == "error: out holds a fine-tuning, and this is a comparison; give another --output\n"


@pytest.mark.parametrize("content", ["{}", '{"kind": 1}'])
def test_a_description_without_a_kind(run, model_folder, text_file, finetuned, content):
    (text_file.parent / "out" / "run.json").write_text(content)
    message = "error: out/run.json does not say what kind of run it describes; restore it, or give another --output"
    for code, out, err in (compare(run, model_folder, text_file, "--resume"), run(*finetuned, "--resume")):
        assert (code, out) == (2, "") and err.splitlines()[-1].startswith(message)


def test_another_text_is_named_by_its_option(run, text_file, finetuned):
    held = json.loads((text_file.parent / "out" / "run.json").read_text())["data"]["sha256"]
    text_file.write_text("Another text.\n" * 300)
    code, _, err = run(*finetuned, "--resume")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f"error: --data, --eval-data must be as in the run in out, where data.sha256 is '{held}', got '"
    )


def test_the_mask_of_another_layer_is_named_by_its_option(run, finetuned):
    code, _, err = run(*finetuned, "--mask", "causal", "--layer", "1=window:4", "--resume")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "error: --layer must be as in the run in out, where layers.1 is None, got 'window:4'; "
    )
