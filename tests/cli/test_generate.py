"""`hf-masking generate`: prompts from files and in a chat."""

import io
import json
import shutil
import sys

import pytest
from transformers import AutoTokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
QUICK = ("--mask", "causal", "--max-new-tokens", "3")


def test_a_prompt_from_a_file(run, model_folder, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("The quick brown\n")
    code, out, err = run("generate", model_folder, *QUICK, "--prompt-file", tmp_path / "prompt.txt")
    assert code == 0, err
    assert out == run("generate", model_folder, *QUICK, "--prompt", "The quick brown")[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The quick brown\n")))
    assert run("generate", model_folder, *QUICK, "--prompt-file", "-")[1] == out


def test_a_prompt_in_a_chat(run, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    code, out, err = run("generate", folder, *QUICK, "--prompt", "Who?", "--chat")
    assert code == 0, err
    plain = run("generate", folder, *QUICK, "--prompt", "<user>Who?<assistant>")[1]
    assert plain == "<user>Who?<assistant>" + out


def test_the_text_and_the_figures_as_json(run, model_folder):
    asked = ("generate", model_folder, "--mask", "window:4|sinks:1", "--max-new-tokens", "200", "--prompt", "The quick")
    code, out, err = run(*asked, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["prompt"] + found["text"] + "\n" == run(*asked)[1]
    assert (found["mask"], found["new_tokens"]) == ("window:4|sinks:1", 200)
    assert found["cache"]["keys"] == 208 > found["cache"]["retained_keys"] >= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--chat"], "the tokenizer has no chat template; leave --chat out"),
        (["--prompt", "a", "--prompt-file", "x.txt"], "--prompt and --prompt-file both give a prompt"),
        (["--prompt-file", "x.txt"], "--prompt-file x.txt: no such file"),
        (["--prompt-file", "."], "--prompt-file .: no such file"),
    ],
)
def test_a_wrong_prompt(run, model_folder, arguments, message):
    code, out, err = run("generate", model_folder, *QUICK, *arguments)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1
