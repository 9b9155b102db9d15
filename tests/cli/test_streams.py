"""Pipes in and out, odd names, and terminals that know ASCII only."""

import io
import json
import os
import sys
import threading

import pytest

from ..conftest import TEXT

SMALL = ("--context", "16", "--max-tokens", "65")


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_figures_alone_on_standard_output(run, model_folder, text_file, output):
    code, out, err = run("eval", model_folder, "--data", text_file, *SMALL, "--output", output)
    assert code == 0, err
    assert json.loads(out)["rows"][0]["tokens"] == 64
    assert "perplexity" in err and "wrote" not in err
    code, out, err = run("check", model_folder, "--mask", "causal", "--length", "9", "--output", output)
    assert code == 0, err
    assert json.loads(out)["rows"] and "all rows pass" in err
    code, out, err = run(
        "bench", "--mask", "causal", "--length", "16", "--heads", "1", "--rounds", "1", "--output", output
    )
    assert code == 0, err
    assert json.loads(out)["rows"] and "against sdpa" not in out


def test_text_from_standard_input(run, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.replace("\n", "\r\n").encode())))
    code, out, err = run("eval", model_folder, "--data", "-", *SMALL, "--output", "-")
    assert code == 0, err
    assert json.loads(out)["text"]["source"] == "standard input"


def test_text_from_a_pipe(run, model_folder, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TEXT,))
    writer.start()
    code, out, err = run("eval", model_folder, "--data", pipe, *SMALL, "--output", "-")
    writer.join()
    assert code == 0, err
    assert json.loads(out)["text"]["source"] == str(pipe)


def test_names_are_no_markup(run, model_folder, text_file):
    (text_file.parent / "[").mkdir()
    odd = text_file.rename(text_file.parent / "[" / "red] :bug: text.txt")
    code, out, err = run("eval", model_folder, "--data", odd, *SMALL, "--output", odd.with_suffix(".json"))
    assert code == 0, err
    assert "[/red]:bug:text.txt" in "".join(out.split())
    assert err.endswith(f"wrote {odd.with_suffix('.json')}\n")


def test_a_terminal_that_knows_ascii_only(monkeypatch, run):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    code, _, err = run("show", "window:2", "--length", "3")
    ascii_only.flush()
    assert code == 0, err
    assert ascii_only.buffer.getvalue().decode("ascii").splitlines()[:3] == ["# . .", "# # .", ". # #"]
