"""`hf-masking finetune` with what the training gets from outside: streams, trackers, launchers."""

import functools
import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_masking import from_pretrained
from hf_masking.cli.terminal import Progression
from hf_masking.evaluation import Text, load_stream, load_text
from hf_masking.evaluation.loading import load_tokenizer

from ..processes import launch

QUICK = ["--context", "16", "--steps", "4", "--batch-size", "4", "--eval-every", "2", "--checkpoint-every", "2"]
QUICK += ["--warmup-steps", "1", "--eval-tokens", "65", "--mask", "window:4|sinks:1"]


def losses(output):
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in log if "loss" in record]


@pytest.fixture
def streamed(model_folder, text_file, tmp_path):
    """The arguments of a run on a stream; the evaluation has a file of its own."""
    (tmp_path / "held.txt").write_text(text_file.read_text()[:900])
    return [str(model_folder), *QUICK, "--data", str(text_file), "--eval-data", str(tmp_path / "held.txt"), "--stream"]


def test_a_streamed_file_is_the_file(model_folder, text_file, tmp_path):
    tokenizer = load_tokenizer(model_folder)
    text_file.write_text("one\n\n  two\tthree \n" * 300)
    whole = tokenizer(load_text(str(text_file)).content)["input_ids"]
    lines = list(load_stream(str(text_file)).tokens(tokenizer, 0))
    assert [token for line in lines for token in line] == whole
    assert list(load_stream(str(text_file)).tokens(tokenizer, 700)) == lines[700:]
    (tmp_path / "folder").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "folder" / name).write_text(name + "\n")
    assert (
        tokenizer.decode([t for line in load_stream(str(tmp_path / "folder")).tokens(tokenizer, 0) for t in line])
        == "a.txt\nb.txt\n"
    )


def test_two_processes_on_a_stream_train_as_one_does(run, streamed, tmp_path):
    one = ["finetune", *streamed, "--shuffle-buffer", "3"]
    code, _, err = run(*one, "--output", tmp_path / "one")
    assert code == 0, err
    done = launch("scripts/finetune.py", *streamed, "--shuffle-buffer", 3, "--output", tmp_path / "two")
    assert "processes: 2;" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    code, _, err = run("finetune", *streamed, "--output", tmp_path / "one", "--resume")
    assert code == 2
    assert (
        f"error: --shuffle-buffer must be as in the run in {tmp_path / 'one'}, where shuffle_buffer is 3, got 256; "
        "give the same, or another --output\n"
    ) in err
    (tmp_path / "other.txt").write_text("Another text.\n" * 300)
    code, _, err = run(*one, "--data", tmp_path / "other.txt", "--output", tmp_path / "one", "--resume")
    assert (code, err.splitlines()[-1].split(" in ")[0]) == (2, "error: --data must be as")


def test_progress_is_told_without_a_terminal(run, streamed, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_masking.cli.finetune.Progression", functools.partial(Progression, seconds=0))
    code, _, err = run("finetune", *streamed, "--output", tmp_path / "run")
    assert code == 0, err
    told = [re.sub(r"[\d.,]+ tokens/s|\d+\.\d+", "#", line) for line in err.splitlines()]
    steps = [f"step {step} of 4: loss #, #" for step in range(1, 5)]
    evaluations = [f"after step {step} of 4: perplexity #" for step in (0, 2, 4)]
    assert told[:-1] == [evaluations[0], *steps[:2], evaluations[1], *steps[2:], evaluations[2]]
    assert "\r" not in err


def test_a_run_resumes_on_the_same_model_alone(run, model_folder, streamed, tmp_path):
    own = shutil.copytree(model_folder, tmp_path / "own")
    arguments = ["finetune", own, *streamed[1:], "--output", tmp_path / "run"]
    assert run(*arguments)[0] == run(*arguments, "--resume")[0] == 0
    retrained = AutoModelForCausalLM.from_pretrained(own)
    retrained.get_input_embeddings().weight.data += 1
    retrained.save_pretrained(own)
    code, _, err = run(*arguments, "--resume")
    assert code == 2
    assert "model_sha256 must be as in the run in" in err


def test_weights_are_trained_in_float32(run, model_folder, streamed, tmp_path):
    rounded = shutil.copytree(model_folder, tmp_path / "rounded")
    AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(rounded)
    code, _, err = run("finetune", rounded, *streamed[1:], "--output", tmp_path / "run", "--learning-rate", "1e-6")
    assert code == 0, err
    assert {p.dtype for p in from_pretrained(tmp_path / "run" / "best").parameters()} == {torch.float32}


def test_a_data_set_of_the_hub_is_trained_on_and_held_out_by_its_splits(run, model_folder, tmp_path, monkeypatch):
    asked = []

    def load(source, *, split="test", column="text"):
        asked.append((source, split, column))
        return Text(source, "some words\n" * 200)

    monkeypatch.setattr("hf_masking.cli.console.load_text", load)
    monkeypatch.setattr("hf_masking.cli.finetune.load_text", load)
    arguments = ["--data", "owner/set", "--eval-data", "owner/set", "--column", "content", *QUICK]
    code, _, err = run("finetune", model_folder, *arguments, "--output", tmp_path / "run")
    assert code == 0, err
    assert asked == [("owner/set", "train", "content"), ("owner/set", "validation", "content")]


def test_a_best_model_in_pieces(run, streamed, tmp_path):
    code, _, err = run("finetune", *streamed, "--output", tmp_path / "run", "--max-shard-size", "10KB")
    assert code == 0, err
    assert (tmp_path / "run" / "best" / "model.safetensors.index.json").exists()
    assert from_pretrained(tmp_path / "run" / "best").config.hf_masking["mask"] == "window:4|sinks:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stream"], "a stream has no last tenth to hold out; name a text to evaluate on with --eval-data"),
        (["--stream", "--data", "stdlib", "--eval-data", "x"], "stdlib is read as a whole; leave --stream out"),
        (["--stream", "--data", "no.txt", "--eval-data", "x"], "no such file or folder: no.txt"),
        (["--stream", "--data", "no/such", "--eval-data", "x"], "cannot be loaded from the hub"),
        (["--stream", "--data", "BINARY", "--eval-data", "TEXT"], "binary.txt is not UTF-8 text ("),
        (
            ["--stream", "--data", "SHORT", "--eval-data", "TEXT"],
            "the stream to train on has 8 tokens, and one context",
        ),
        (
            ["--stream", "--data", "EMPTY", "--eval-data", "TEXT"],
            "the stream to train on has 0 tokens, and one context",
        ),
        (["--seed", "-1"], "--seed must be from 0 to 4294967295, got -1"),
        (["--learning-rate", "inf"], "--learning-rate must be greater than 0 and finite, got inf"),
        (["--tracker", "abacus"], "unknown tracker 'abacus'; expected one of"),
        (
            ["--max-shard-size", "much"],
            "--max-shard-size must be a number of bytes or a size such as '2GB'",
        ),
    ],
)
def test_mistakes(run, model_folder, text_file, tmp_path, arguments, message):
    output = tmp_path / "run"
    named = {"TEXT": text_file}
    for name, content in {"BINARY": b"\xff\xfe\x00" * 99, "SHORT": b"7 bytes", "EMPTY": b""}.items():
        named[name] = tmp_path / f"{name.lower()}.txt"
        named[name].write_bytes(content)
    arguments = [named.get(argument, argument) for argument in arguments]
    code, _, err = run("finetune", model_folder, *QUICK, "--data", text_file, "--output", output, *arguments)
    assert code == 2
    assert re.search(f"^error: .*{re.escape(message)}", err, flags=re.MULTILINE), err
    assert not output.exists()
