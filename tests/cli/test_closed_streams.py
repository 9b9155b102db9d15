"""Standard streams that are closed, full, or no longer read, and a terminal without a width."""

import subprocess
import sys

import pytest

COMMAND = f"{sys.executable} -m hf_masking"


def shell(line, **names):
    """Run a line of bash; return its exit code, standard output and standard error."""
    line = line.format(hf=COMMAND, **names)
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_standard_output_is_closed():
    assert shell("{hf} show causal --length 2 >&-") == (
        2, "", "error: standard output is closed; give it a file or a pipe, or discard it with >/dev/null\n",
    )  # fmt: skip


def test_standard_input_is_closed(model_folder):
    code, out, err = shell("{hf} eval {model} --data - --context 16 <&-", model=model_folder)
    assert (code, out) == (2, "") and err.startswith("error: standard input is empty") and err.count("\n") == 1


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_the_exit_code_outlives_standard_error(where):
    assert shell("{hf} show windw " + where) == (2, "", "")


def test_whoever_read_has_seen_enough(model_folder):
    line = "{hf} generate {model} --mask causal --prompt ab --max-new-tokens 300 | head -c 1"
    assert shell(line, model=model_folder) == (141, "a", "")
    assert shell("{hf} show causal --length 8 | true") == (141, "", "")
    assert shell("{hf} --help | true") == (141, "", "")


def test_a_terminal_without_a_width():
    code, out, _ = shell("COLUMNS=0 {hf} show causal --length 2; COLUMNS=0 {hf} --help")
    assert code == 0 and "density    100.00%" in out and "Usage: " in out
