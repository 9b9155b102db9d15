"""The snippets of a page, and a place where they run."""

import re
import shlex
import shutil

import pytest

from .cli.conftest import model_folder, run, text_file

__all__ = ["blocks", "commands", "model_folder", "run", "run_small", "text_file", "workplace"]

# The sizes of a real run are cut to those of a test.
SMALL = {"eval": ["--context", "32"], "finetune": ["--context", "16", "--steps", "3"], "check": ["--length", "9"]}
# Two seeds, which take twice the processes, have a test of their own.
SMALL["compare"] = ["--context", "16", "--steps", "3", "--eval-tokens", "65", "--seeds", "1", "--longest", "256"]
SMALL["bench"] = ["--length", "64", "--rounds", "1", "--heads", "1", "--head-size", "8"]


def blocks(page, *languages):
    """(language, text) of each block of these languages, in order."""
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(block):
    """The command lines for hf-masking: others are what runs this very test, or take a network or an hour."""
    lines = block.replace("\\\n", " ").splitlines()
    # `compare` without a model trains one for minutes: `make demo` is its test.
    return [line for line in lines if line.startswith("hf-masking ") and line != "hf-masking compare"]


@pytest.fixture
def workplace(tmp_path, monkeypatch, model_folder, text_file):
    """A folder with the model and the text that the snippets name."""
    shutil.copytree(model_folder, tmp_path / "my-model")
    text_file.rename(tmp_path / "book.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_small(run, command, sizes=SMALL):
    words = shlex.split(command, comments=True)[1:]
    code, _, err = run(*words, *sizes.get(words[0], []))
    assert code == 0, f"{command}\n{err}"
