"""The form of an error, and the exit code."""

import os
import pickle
import subprocess
import sys

import pytest

from hf_masking.cli import app
from hf_masking.errors import FailedCheckError, FieldError


@pytest.fixture
def raising(monkeypatch, run):
    """Runs a command that raises."""

    def call(error):
        def fail(*arguments, **values):
            raise error

        monkeypatch.setattr(app, "call", fail)
        return run("show", "causal")

    return call


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ValueError("too short"), "too short", 2),
        (OSError(28, "No space left on device", "runs/x.json"), "runs/x.json: No space left on device", 2),
        (MemoryError(), "not enough memory", 2),
        (RuntimeError("DefaultAllocator: can't allocate memory"), "not enough", 2),
        (IndexError("index out of range in self\nmore"), "IndexError: index out of range in self (not expected; ", 1),
        (ValueError("no such file: a\nb\x1b[31m"), r"no such file: a\nb\x1b[31m", 2),
        (ValueError("x" * 5000), "x" * 1000 + "...", 2),
        (RuntimeError("can't allocate memory: you tried to allocate 1073741824 bytes"), "not enough memory (1.0 G", 2),
        (RuntimeError(""), "RuntimeError: nothing more is known", 1),
    ],
)  # fmt: skip
def test_errors_are_one_line(raising, error, message, code):
    status, out, err = raising(error)
    assert status == code and not out
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_tracebacks_when_asked_for(raising, monkeypatch):
    assert "HF_MASKING_TRACEBACK=1 shows where" in raising(KeyError("density"))[2]
    monkeypatch.setenv("HF_MASKING_TRACEBACK", "1")
    with pytest.raises(KeyError, match="density"):
        raising(KeyError("density"))


def test_an_interrupt_is_no_error(raising):
    assert raising(KeyboardInterrupt()) == (130, "", "interrupted\n")


def test_a_warning_is_printed_once(run, model_folder):
    code, _, err = run("check", model_folder, "--mask", "window:4", "--length", "9")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "no query after position" in line]
    assert line.startswith("warning: mask window:4: ")


def test_messages_name_options(run, monkeypatch):
    def fail(options):
        raise FieldError(["length", "png"], "must be as png is; see runs/length")

    monkeypatch.setattr("hf_masking.cli.show.run", fail)
    assert run("show", "causal") == (
        2,
        "",
        "error: --length, --png must be as png is; see runs/length\n",
    )
    assert str(pickle.loads(pickle.dumps(FieldError("steps", "must be 1")))) == "steps must be 1"


def test_failed_checks_are_one_line_without_advice_for_python(raising):
    error = FailedCheckError("LlamaForCausalLM does not keep its mask", "FAILED  inf  one", "FAILED  inf  two")
    assert str(error).splitlines()[1:] == ["FAILED  inf  one", "FAILED  inf  two"] and "check=False" in str(error)
    assert raising(error)[2] == (
        "error: LlamaForCausalLM does not keep its mask: FAILED  inf  one; see all with hf-masking check\n"
    )


def test_completion():
    done = subprocess.run(
        [sys.executable, "-c", "from hf_masking.cli.main import run; run()"],
        env={**os.environ, "_HF_MASKING_COMPLETE": "complete_bash", "COMP_WORDS": "hf-masking ma", "COMP_CWORD": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["masks"], "")
