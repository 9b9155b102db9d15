"""Every command, driven by its entry point, on a model from disk."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_masking
from hf_masking import from_pretrained, patch_model, perplexity
from hf_masking.cli.app import COMMANDS
from hf_masking.comparison import run as comparison_run
from hf_masking.comparison import speed as comparison_speed
from hf_masking.comparison import trials as comparison_trials
from hf_masking.comparison.trials import Trial, try_masks
from hf_masking.modeling.checking import generation

from ..conftest import TEXT
from ..processes import ACCELERATE, launch

QUICK = ("--context", "16", "--steps", "3", "--batch-size", "4", "--warmup-steps", "1", "--eval-tokens", "65")


def test_show(run, tmp_path):
    code, out, _ = run("show", "window:2|sinks:1", "--length", "4", "--png", tmp_path / "mask.png")
    assert code == 0
    assert out.splitlines()[:4] == ["■ · · ·", "■ ■ · ·", "■ ■ ■ ·", "■ · ■ ■"]
    assert "density    90.00% of causal (9 of 10 pairs)" in out
    assert "lookahead  0 (causal)" in out
    assert "cache      2 of 4 keys can still be read at length 4" in out
    assert "plan       9 pairs computed, 1.00 of those allowed" in out and "+ 4 diagonals" in out
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_show_of_a_long_mask(run):
    code, out, err = run("show", "block_causal:4", "--length", "20000")
    assert code == 0
    assert "lookahead  3 tokens: no generation" in out
    assert "■" not in out
    assert "drawn as text up to 64" in err


def test_show_of_a_mask_by_heads(run):
    code, out, _ = run("show", "heads[causal; strided:2]", "--length", "3")
    assert code == 0
    assert out.splitlines()[:4] == ["heads with causal", "■ · ·", "■ ■ ·", "■ ■ ■"]
    assert out.index("heads with causal") < out.index("mask       causal") < out.index("heads with strided:2")


def test_show_as_json(run, model_folder):
    code, out, err = run("show", "heads[causal; window:2|sinks:1]", "--length", "4", "--json")
    assert (code, err) == (0, "")
    first, second = json.loads(out)["heads"]
    assert (first["mask"], first["pairs"], first["causal_pairs"]) == ("causal", 10, 10)
    assert (second["pairs"], second["lookahead"], second["retained_keys"]) == (9, 0, 2)
    assert second["computed_pairs"] == 9 and second["parts"]
    inside = ("--model", model_folder, "--text", "abcdefgh", "--length", "6", "--json")
    code, out, err = run("show", "top_blocks:block=2,k=1", *inside)
    assert code == 0 and (json.loads(out)["pairs"], json.loads(out)["pairs_ahead"]) == (17, 0)


def test_show_of_what_the_content_decides(run, model_folder, tmp_path):
    code, out, _ = run(
        "show", "top_blocks:block=2,k=1", "--model", model_folder, "--text", "abcdefgh", "--length", "6",
        "--show-layer", "1", "--head", "1", "--png", tmp_path / "seen.png",
    )  # fmt: skip
    assert code == 0
    rows = [line.split() for line in out.splitlines()[:6]]
    assert [row.count("■") for row in rows] == [1, 2, 3, 4, 3, 4]
    assert all(row[i] == "■" and "■" not in row[i + 1 :] for i, row in enumerate(rows))
    assert "density    80.95% of causal here (17 of 21 pairs), mean weight 80.95%" in out
    assert "80.95% over all layers and heads" in out
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(
        "show", "adaptive_span:max=2,ramp=4", "--model", model_folder, "--text", "abcdefgh", "--length", "6"
    )
    assert code == 0
    assert out.splitlines()[5].split() == ["▒", "▒", "▒", "■", "■", "■"]


def test_a_checkpoint_is_read_with_what_its_mask_has_learned(run, model_folder, text_file, tmp_path):
    learned = tmp_path / "learned"
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "adaptive_span:max=8,ramp=2", check=False)
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.hf_masking.adaptive_span.share, 0.25)
    model.save_pretrained(learned)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(learned)
    quick = ("--data", text_file, "--context", "16", "--max-tokens", "65")
    figures = {}
    for name, more in {
        "carried": ("eval", learned),
        "named": ("eval", learned, "--mask", "adaptive_span:max=8,ramp=2"),
        "new": ("eval", model_folder, "--mask", "adaptive_span:max=8,ramp=2"),
    }.items():
        code, _, err = run(*more, *quick, "--output", tmp_path / f"{name}.json")
        assert code == 0, err
        (row,) = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        figures[name] = row["perplexity"]
    assert figures["carried"] == figures["named"] != figures["new"]
    code, out, err = run(
        "show", "adaptive_span:max=8,ramp=2", "--model", learned, "--text", "abcdefgh", "--length", "8"
    )
    assert code == 0, err
    assert out.splitlines()[7].split() == ["·", "·", "·", "·", "▒", "■", "■", "■"]
    code, out, err = run("check", learned, "--length", "9")
    assert code == 0, err
    code, out, err = run("generate", learned, "--prompt", "The quick", "--max-new-tokens", "3")
    assert code == 0, err
    assert "adaptive_span:max=8,ramp=2" in err


def test_bench(run, tmp_path):
    output = tmp_path / "bench.json"
    code, out, _ = run(
        "bench", "--mask", "window:16", "--length", "64", "--length", "1024", "--heads", "2", "--head-size", "8",
        "--rounds", "2", "--output", output,
    )  # fmt: skip
    assert code == 0, out
    assert "window:16: " in out and "against sdpa is_causal" in out
    report = json.loads(output.read_text())
    runs = [(row["length"], row["backend"]) for row in report["rows"]]
    dense = ["sdpa is_causal", "sdpa dense mask", "auto"]
    assert runs == [(64, name) for name in [*dense, "blockwise"]] + [(1024, name) for name in dense]
    # Fewer than three rounds have no spread.
    assert all(row["both"]["low"] <= row["both"]["median"] and row["both"]["disturbed"] for row in report["rows"])
    assert "* disturbed" in out
    assert report["machine"]["torch"] == torch.__version__
    assert "| `window:16` | auto: blockwise |" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_eval(run, model_folder, text_file, tmp_path):
    output = tmp_path / "eval.json"
    code, out, _ = run(
        "eval", model_folder, "--mask", "causal", "--mask", "window:4", "--layer", "0=strided:2", "--data", text_file,
        "--context", "24", "--stride", "8", "--max-tokens", "300", "--output", output,
    )  # fmt: skip
    assert code == 0
    assert "loss (nats) by position" in out
    report = json.loads(output.read_text())
    assert report["text"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (report["text"]["tokens"], report["text"]["bytes"], report["bos"]) == (300, 300, False)
    assert [row["mask"] for row in report["rows"]] == ["causal", "window:4"]
    by_head = run("eval", model_folder, "--mask", "heads[window:4; causal]", "--data", text_file, "--context", "24")
    assert by_head[1].count("heads[window") == 2, "brackets are no markup"
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:4", layers={0: "strided:2"})
    ids = torch.tensor(AutoTokenizer.from_pretrained(model_folder)(TEXT)["input_ids"][:300])
    expected = perplexity(model, ids, context=24, stride=8, text_bytes=300)
    row = report["rows"][1]
    assert math.isclose(row["perplexity"], expected.perplexity, rel_tol=1e-5)
    assert math.isclose(row["bits_per_byte"], expected.bits_per_byte, rel_tol=1e-5)
    assert row["by_position"] == pytest.approx(expected.by_position, rel=1e-4)


def test_finetune_resume_and_load(run, model_folder, text_file, tmp_path):
    output = tmp_path / "run"
    arguments = (
        "finetune",
        model_folder,
        "--mask",
        "window:4|sinks:1",
        "--data",
        text_file,
        "--output",
        output,
        *QUICK,
    )
    code, _, err = run(*arguments)
    assert code == 0
    assert "load it with hf_masking.from_pretrained" in err
    assert from_pretrained(output / "best").config.hf_masking["mask"] == "window:4|sinks:1"
    assert AutoTokenizer.from_pretrained(output / "best")("fox")["input_ids"]
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log if "loss" in record] == [1, 2, 3]
    code, _, err = run(*arguments)
    assert (code, err) == (
        2,
        f"error: {output} holds another run; give --resume to continue it, or another --output to start anew\n",
    )
    assert run(*arguments, "--resume")[0] == 0
    code, _, err = run(*arguments, "--resume", "--learning-rate", "0.5")
    assert code == 2
    assert (
        f"error: --learning-rate must be as in the run in {output}, where settings.learning_rate is 0.0003, got 0.5; "
        "give the same, or another --output\n"
    ) in err


def losses(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record.get("loss", record.get("perplexity")) for record in records]


def test_two_processes_train_like_one(run, model_folder, text_file, tmp_path):
    # Two micro-batches in each process, and a last context that is shorter than the others.
    arguments = [model_folder, "--mask", "window:4|sinks:1", "--data", text_file, *QUICK]
    arguments += ["--micro-batch-size", 1, "--gradient-checkpointing", "--output"]
    code, _, err = run("finetune", *arguments, tmp_path / "1")
    assert code == 0 and "processes: 1;" in err
    # With --cpu it would start a single process, whatever the number.
    two = ["--multi_gpu", "--num_processes", 2, "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launch(*two, "scripts/finetune.py", *arguments, tmp_path / "2", launcher=ACCELERATE)
    assert "processes: 2;" in done.stderr
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 1 + 3 + 1
    assert two == pytest.approx(one, abs=1e-5, rel=1e-5)


def with_a_mask_that_is_killed(experiment, trials, tell):
    for mask, seed in trials:
        if mask == "window:9":
            yield Trial(mask, seed, error="its process was killed")
        else:
            yield from try_masks(experiment, [(mask, seed)], tell)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eval-tokens", "100"), "the text has 100 tokens, and one context of 512 needs 513"),
        (("--stride", "513"), "stride must be from 1 to the context, which is 512, got 513"),
        (("--train-tokens", "500"), "the text to train on has 500 tokens, and one context of 512 needs 513"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_before_the_small_model_is_trained(
    run, tmp_path, monkeypatch, options, message
):
    (tmp_path / "text.txt").write_text("".join(f"{word} and {word + 1}\n" for word in range(9000)))
    monkeypatch.setenv("HF_MASKING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(comparison_run, "in_own_process", None)
    code, _, err = run(
        "compare", "--data", tmp_path / "text.txt", "--context", "512", *options, "--output", tmp_path / "out"
    )
    assert code == 2 and message in err
    assert not (tmp_path / "out").exists()


def test_compare_one_mask(run, model_folder, text_file, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, err = run(
        "compare", model_folder, "--data", text_file, "--mask", "window:4|sinks:1", "--layer", "1=causal", "--context",
        "16", "--steps", "2", "--batch-size", "2", "--eval-tokens", "65", "--longest", "0",
        "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "Warning" not in err
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"speed.png", "recovery.png"}
    assert "layer 1:" in err and json.loads(out) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "| `window:4\\|sinks:1; layer 1: causal` |" in (tmp_path / "out" / "report.md").read_text()


def test_compare_ones_own_model(run, model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_run, "try_masks", with_a_mask_that_is_killed)
    output, own = tmp_path / "out" / "report", shutil.copytree(model_folder, tmp_path / "own")
    arguments = [
        "compare", own, "--data", text_file, "--mask", "causal", "--mask", "window:9", "--context", "16",
        "--steps", "4", "--eval-every", "2", "--batch-size", "2", "--eval-tokens", "129", "--longest", "256",
        "--output", output,
    ]  # fmt: skip
    code, out, err = run(*arguments, "--mask", "window:4|sinks:1", "--seeds", "2")
    assert code == 1, err
    report = json.loads((output / "report.json").read_text())
    causal, killed, window = report["trials"][:3]
    assert [trial["seed"] for trial in report["trials"]] == [0, 0, 0, 1, 1, 1]
    assert killed["error"] == "its process was killed"
    # Below the tables: a row has no room for it.
    assert "\nwindow:9 failed: its process was killed\n" in out
    for trial in (causal, window):
        assert trial["error"] is None
        assert trial["peak_memory_bytes"] > 50 * 2**20
        assert list(trial["recovery"]) == ["0", "2", "4"]
        assert trial["recovery"]["4"] < trial["recovery"]["0"]
        assert len(trial["by_position"]) == 16
    assert causal["density"] == 1
    assert window["density"] < 0.6
    for work in ("training", "evaluation", "decoding"):
        for mask in ("causal", "window:9", "window:4|sinks:1"):
            assert report["speeds"][work][mask]["speed_up"]["median"] > 0
    # Every measurement may have been disturbed, and then the break-even length is not known.
    assert set(report["break_even"]) <= {"causal", "window:9", "window:4|sinks:1"}
    markdown = (output / "report.md").read_text()
    assert "| `window:4\\|sinks:1` |" in markdown
    assert "over 2 seeds" in markdown
    assert "\n\nwindow:9 failed: its process was killed\n\n" in markdown
    for name in ("speed", "recovery", "positions"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "1/6 causal, seed 0: perplexity" in err

    # What is there is not measured again, and masks can be added. Here that takes no processes, which have been seen.
    for module in (comparison_trials, comparison_run, comparison_speed):
        monkeypatch.setattr(module, "in_own_process", lambda function, *arguments: function(*arguments))
    code, out, err = run(*arguments, "--mask", "window:4|sinks:1", "--mask", "window:5", "--seeds", "2")
    assert code == 2
    assert "give --resume" in err
    code, out, err = run(*arguments, "--mask", "window:4|sinks:1", "--mask", "window:5", "--seeds", "2", "--resume")
    assert "4 of 8 trials are there already" in err
    assert json.loads((output / "report.json").read_text())["trials"][0] == causal
    code, out, err = run(*arguments, "--batch-size", "3", "--resume")
    assert code == 2
    assert f"error: --batch-size must be as in the run in {output}, where options.batch_size is 2, got 3; " in err
    retrained = AutoModelForCausalLM.from_pretrained(own)
    retrained.get_input_embeddings().weight.data += 1
    retrained.save_pretrained(own)
    code, out, err = run(*arguments, "--resume")
    assert code == 2
    assert "error: model_sha256 must be as in the run in" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_real_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    # Whole: the usage line has the name of the command, too.
    said = " ".join(out.split("Examples:")[1].split())
    assert [example for example in COMMANDS[command].examples if example not in said] == []


def test_the_version(run):
    assert run("--version") == (0, f"{hf_masking.__version__}\n", "")
    done = subprocess.run([sys.executable, "-m", "hf_masking", "--version"], capture_output=True, text=True)
    assert done.stdout == f"{hf_masking.__version__}\n"


def test_check(run, model_folder, tmp_path):
    report = tmp_path / "check.json"
    code, out, err = run("check", model_folder, "--mask", "window:4|sinks:1", "--length", "9", "--output", report)
    assert code == 0, err
    assert "all rows pass" in out and "left-padded prompts of unequal length" in out and "not run" in out
    rows = json.loads(report.read_text())["rows"]
    assert {row["mask"] for row in rows} == {"window:4|sinks:1"} and all(row["passed"] for row in rows)
    assert {"greedy", "beams", "prompt lookup", "chunked prefill"} <= {row["name"] for row in rows}


def test_check_of_a_mask_with_lookahead(run, model_folder):
    code, out, err = run("check", model_folder, "--mask", "block_causal:4")
    assert code == 0 and "all rows pass" in out and "greedy" not in out
    assert "looks 3 tokens ahead: generation is refused and not checked" in err


def test_check_fails_with_code_1(run, model_folder, monkeypatch):
    monkeypatch.setattr(generation, "MODES", {"greedy": lambda probe, length: torch.ones(1, 1)})
    code, out, _ = run("check", model_folder, "--mask", "window:4", "--length", "9")
    assert code == 1 and "FAILED" in out and "prompts of 9 tokens" in out


def test_generate(run, model_folder):
    arguments = "generate", model_folder, "--mask", "window:8|sinks:2", "--prompt", "The quick brown fox"
    code, out, err = run(*arguments, "--max-new-tokens", 150)
    assert code == 0, err
    assert out.startswith("The quick brown fox") and len(out) > 100
    assert re.search(r"speed +[\d.]+ tokens/s \(150 tokens", err)
    assert re.search(r"cache +7\d of 168 keys retained, 0\.0\d MiB; a full cache holds", err)
    assert run(*arguments, "--max-new-tokens", 150)[1] == out
    sampled = run(*arguments, "--temperature", 1, "--top-p", 0.9)[1]
    assert sampled != out and run(*arguments, "--temperature", 1, "--top-p", 0.9)[1] == sampled
    assert run(*arguments, "--temperature", 1, "--top-p", 0.9, "--seed", 1)[1] != sampled
