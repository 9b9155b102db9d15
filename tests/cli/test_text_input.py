"""Names of texts that stand for none, and texts that are not what they seem: one line, exit code 2, and no folder."""

import io
import sys

import pytest
import torch
from transformers import AutoTokenizer

from hf_masking.evaluation import encode, load_stream, load_text

from ..conftest import TEXT

BOM = "\ufeff"
NOT_UTF_8 = "ab\udcff"  # what Python makes of a byte of the command line that is not UTF-8
RUN = ("--context", "16", "--steps", "1", "--warmup-steps", "0", "--eval-tokens", "65", "--output", "out")
STREAM = ("finetune", "MODEL", *RUN, "--eval-data", "TEXT", "--stream", "--data")
WHOLE = ("eval", "MODEL", "--context", "16", "--data")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("the name of the text is empty; give a text file", (*STREAM, "")),
        ("the name of the text is empty", (*WHOLE, "")),
        ("no such user: ~nosuchuser/x.txt; give a text file", (*WHOLE, "~nosuchuser/x.txt")),
        ("no such user: ~nosuchuser/x.txt", (*STREAM, "~nosuchuser/x.txt")),
        ("no such user: ~nosuchuser/x", ("finetune", "MODEL", *RUN, "--data", "TEXT", "--eval-data", "~nosuchuser/x")),
        ("':' names no data set before the colon; give NAME or NAME:CONFIG", (*WHOLE, ":")),
        ("':a' names no data set", (*WHOLE, ":a")),
        ("':a' names no data set", (*STREAM, ":a")),
        ("/proc/self/mem: Input/output error", (*WHOLE, "/proc/self/mem")),
        ("--prompt is not UTF-8 text", ("generate", "MODEL", "--mask", "causal", "--prompt", NOT_UTF_8)),
        ("--text is not UTF-8 text", ("show", "causal", "--model", "MODEL", "--text", NOT_UTF_8)),
    ],
)
def test_no_text(run, model_folder, text_file, monkeypatch, message, arguments):
    monkeypatch.chdir(text_file.parent)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    names = {"MODEL": model_folder, "TEXT": text_file}
    code, out, err = run(*(names.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert list(text_file.parent.iterdir()) == [text_file]


def test_a_byte_order_mark_is_no_text(model_folder, text_file, tmp_path, monkeypatch):
    marked = tmp_path / "marked" / "text.txt"
    marked.parent.mkdir()
    marked.write_text(BOM + TEXT)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((BOM + TEXT).encode())))
    for source in (marked, marked.parent, "-"):
        assert load_text(str(source)).content == TEXT
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    streamed = [token for row in load_stream(str(marked)).tokens(tokenizer, 0) for token in row]
    assert torch.equal(torch.tensor(streamed), encode(load_text(str(text_file)), tokenizer)[0])
