"""Options without an effect, and values that no machine can serve, are refused in one line."""

import warnings

import pytest

from hf_masking.cli.terminal import logged_once

from .test_text_input import RUN

HUGE = str(2**63)
FINETUNE = ("finetune", "MODEL", *RUN, "--data", "TEXT")
EVAL = ("eval", "MODEL", "--context", "16", "--data", "TEXT")
GENERATE = ("generate", "MODEL", "--mask", "causal", "--prompt", "a")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--eval-split goes with --eval-data; give both, or leave it out", (*FINETUNE, "--eval-split", "x")),
        ("--eval-split goes with a hub data set, and TEXT is none",
         (*FINETUNE, "--eval-split", "x", "--eval-data", "TEXT")),
        ("--split goes with a hub data set, and TEXT is none; leave it out", (*FINETUNE, "--split", "x")),
        ("--split goes with a hub data set, and TEXT is none; leave it out", (*EVAL, "--split", "x")),
        ("--split goes with a hub data set, and stdlib is none", (*EVAL, "--split", "x", "--data", "stdlib")),
        ("--shuffle-buffer goes with --stream; give both, or leave it out", (*FINETUNE, "--shuffle-buffer", "5")),
        *(
            (f"--{name} must be at most 2,147,483,647, got {HUGE}", (*FINETUNE, f"--{name}", HUGE))
            for name in ("batch-size", "micro-batch-size", "steps", "lora", "context", "eval-every")
        ),
        (f"--batch-size must be at most 2,147,483,647, got {HUGE}", (*EVAL, "--batch-size", HUGE)),
        (f"--max-new-tokens must be at most 2,147,483,647, got {HUGE}", (*GENERATE, "--max-new-tokens", HUGE)),
        ("--layer takes INDEX=MASK such as 0=causal, got '0='", (*EVAL, "--mask", "causal", "--layer", "0=")),
    ],
)  # fmt: skip
def test_refused_in_one_line(run, model_folder, text_file, monkeypatch, message, arguments):
    monkeypatch.chdir(text_file.parent)
    names = {"MODEL": model_folder, "TEXT": text_file}
    code, out, err = run(*(names.get(argument, argument) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {message.replace('TEXT', str(text_file))}")
    assert list(text_file.parent.iterdir()) == [text_file]


def test_what_follows_a_number_is_shown(run):
    code, _, err = run("show", "window:0x3")
    assert code == 2
    assert err == "error: expected '|', '&', '-' or the end, got 'x'\n  window:0x3\n          ^\n"


def test_warnings_of_libraries_are_one_line(capsys):
    with logged_once(), warnings.catch_warnings():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("Initializing zero-element tensors is a no-op\nmore", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: Initializing zero-element tensors is a no-op\n"


def test_a_file_in_the_place_of_checkpoints(run, model_folder, text_file, monkeypatch):
    monkeypatch.chdir(text_file.parent)
    arguments = ("finetune", model_folder, *RUN, "--data", text_file)
    assert run(*arguments)[0] == 0
    folder = text_file.parent / "out" / "checkpoints"
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")
    code, _, err = run(*arguments, "--resume")
    assert code == 2
    assert err.splitlines()[-1].endswith("/out/checkpoints is a file, not a folder")
