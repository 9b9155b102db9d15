"""`hf-masking eval --probe`: tables and figures, what is refused, and what a failure leaves."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from hf_masking import patch_model, probe, probe_task
from hf_masking.cli import terminal
from hf_masking.comparison import run as comparison_run
from hf_masking.comparison import speed, trials
from hf_masking.evaluation.probes import probing

PROBE = ("--context", "48", "--questions", "12")


def test_rows_are_what_python_finds(run, model_folder, tmp_path):
    output = tmp_path / "probes.json"
    code, out, err = run(
        "eval", model_folder, "--probe", "recall", "--probe", "copy", "--mask", "causal", "--mask", "window:9|sinks:1",
        "--layer", "0=causal", *PROBE, "--seed", "3", "--output", output,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(output.read_text())
    assert [report[name] for name in ("context", "questions", "seed", "bos")] == [48, 12, 3, False]
    assert [(row["probe"], row["mask"]) for row in report["rows"]] == [
        (name, mask) for name in ("recall", "copy") for mask in ("causal", "window:9|sinks:1")
    ]
    assert report["rows"][1]["runs"] == "window:9|sinks:1; layer 0: causal"
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:9|sinks:1", layers={0: "causal"})
    for row in report["rows"][1::2]:
        task = probe_task(row["probe"], AutoTokenizer.from_pretrained(model_folder))
        expected = probe(model, task, context=48, questions=12, seed=3)
        assert row["accuracy"] == expected.accuracy and row["control"] == expected.control
        assert row["by_distance"] == [vars(there) for there in expected.by_distance]
    assert "recall: % of right answers ± standard error, by tokens back to the answer; chance 12.5%, context 48" in out


@pytest.mark.parametrize("name", ["recall", "copy", "passkey"])
def test_tables_fit_80_columns(run, model_folder, monkeypatch, name):
    monkeypatch.setattr(terminal.errors, "width", 80)
    code, out, err = run("eval", model_folder, "--probe", name, "--context", "300", "--questions", "1", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert max(map(len, err.splitlines()[1:])) <= 80
    assert all(str(there["distance"]) in err.split() for there in row["by_distance"])


def test_a_bos_token_is_put_first(run, model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.bos_token = "!"
    for folder in (tokenizer, AutoModelForCausalLM.from_pretrained(model_folder)):
        folder.save_pretrained(tmp_path / "begins")
    rows = {}
    for bos in ("--bos", "--no-bos"):
        code, out, err = run("eval", tmp_path / "begins", "--probe", "recall", *PROBE, bos, "--json")
        assert code == 0, err
        rows[bos] = json.loads(out)
    assert (rows["--bos"]["bos"], rows["--no-bos"]["bos"]) == (True, False)
    assert [rows[bos]["rows"][0]["by_distance"][-1]["distance"] for bos in rows] == [45, 46]


def test_rows_that_were_answered_survive_one_that_fails(run, model_folder, tmp_path, monkeypatch):
    plain = probing.log_likelihoods

    def fails_under_a_window(model, items):
        if "window:3" in model.config.hf_masking["mask"]:
            raise RuntimeError("out of luck\nand more")
        return plain(model, items)

    monkeypatch.setattr(probing, "log_likelihoods", fails_under_a_window)
    masks = ("--mask", "window:3", "--mask", "causal")
    code, out, _ = run("eval", model_folder, "--probe", "recall", *PROBE, *masks, "--output", tmp_path / "x.json")
    assert code == 1 and "window:3 failed: RuntimeError: out of luck\n" in out
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert rows[0]["error"] == "RuntimeError: out of luck" and rows[1]["questions"] == 48
    code, out, err = run("eval", model_folder, "--probe", "recall", *PROBE, "--mask", "window:3")
    assert code == 1 and "out of luck" in err


@pytest.fixture(scope="module")  # made before the command's streams are captured: saving shows a progress bar
def positions(tmp_path_factory, model_folder):
    """A model with 32 positions."""
    folder = tmp_path_factory.mktemp("positions")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


BEFORE = ("eval", "MODEL", "--probe", "recall", "--context", "48")
NO_TEXT = "says which text is read, and --probe reads none; leave it out"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--probe must be one of recall, copy, passkey, got 'recal'", ("eval", "nowhere", "--probe", "recal")),
        ("--probe must be one of recall, copy, passkey, got ''", (*BEFORE, "--probe", "")),
        (f"--data {NO_TEXT}", (*BEFORE, "--data", "book.txt")),
        (f"--split {NO_TEXT}", (*BEFORE, "--split", "train")),
        (f"--column {NO_TEXT}", (*BEFORE, "--column", "words")),
        (f"--stride {NO_TEXT}", (*BEFORE, "--stride", "4")),
        (f"--max-tokens {NO_TEXT}", (*BEFORE, "--max-tokens", "400")),
        ("--questions goes with --probe; give both, or leave it out", ("eval", "MODEL", "--questions", "5")),
        ("--seed goes with --probe; give both, or leave it out", ("eval", "MODEL", "--seed", "5")),
        ("--questions must be from 1 to 2147483647, got 0", (*BEFORE, "--questions", "0")),
        ("--seed must be from 0 to 9223372036854775807, got -1", (*BEFORE, "--seed", "-1")),
        ("--batch-size must be at least 1, got 0", (*BEFORE, "--batch-size", "0")),
        ("--context must be at least 6 tokens for this probe, got 5", (*BEFORE, "--context", "5")),
        ("--context must be at most 16,777,216, got 99999999", (*BEFORE, "--context", "99999999")),
        ("--context must be at least 86 tokens for this probe, got 48", (*BEFORE, "--probe", "passkey")),
        ("the tokenizer has no BOS token; leave --bos out", (*BEFORE, "--bos")),
        ("mask block_causal:4 looks 3 tokens ahead, so the accuracy of a probe", (*BEFORE, "--mask", "block_causal:4")),
        ("mask prefix|causal needs marked tokens, and a plain text has no marks", (*BEFORE, "--mask", "prefix|causal")),
        ("unknown mask 'windw'", (*BEFORE, "--mask", "windw:3")),
        ("a context of 48 tokens takes 48 positions, and the model has 32", ("eval", "POSITIONS", *BEFORE[2:])),
        ("--probe must be one of recall, copy, passkey, got 'x'", ("compare", "MODEL", "--probe", "x")),
        ("--context must be at least 25 tokens for this probe, got 16",
         ("compare", "MODEL", "--probe", "copy", "--context", "16", "--data", "TEXT", "--eval-tokens", "65")),
    ],
)  # fmt: skip
def test_refused_in_one_line(run, model_folder, positions, text_file, monkeypatch, message, arguments):
    monkeypatch.chdir(text_file.parent)
    names = {"MODEL": model_folder, "POSITIONS": positions, "TEXT": text_file}
    before = sorted(text_file.parent.rglob("*"))
    code, out, err = run(*(names.get(argument, argument) for argument in arguments))
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert (code, out) == (2, "") and lines[0].startswith("error: ") and message in lines[0], err
    assert len(lines) == 1 or lines[2].strip() == "^"
    assert sorted(text_file.parent.rglob("*")) == before


def test_compare_asks_before_and_after_the_fine_tuning(run, model_folder, text_file, tmp_path, monkeypatch):
    for module in (trials, comparison_run, speed):  # that it takes processes is tested elsewhere
        monkeypatch.setattr(module, "in_own_process", lambda function, *arguments: function(*arguments))
    output = tmp_path / "out"
    code, out, err = run(
        "compare", model_folder, "--data", text_file, "--mask", "causal", "--context", "16", "--steps", "2",
        "--batch-size", "2", "--eval-tokens", "65", "--longest", "0", "--probe", "recall", "--output", output,
    )  # fmt: skip
    assert code == 0, err
    (trial,) = json.loads((output / "report.json").read_text())["trials"]
    task = probe_task("recall", AutoTokenizer.from_pretrained(model_folder))
    expected = probe(AutoModelForCausalLM.from_pretrained(model_folder), task, context=16)
    assert trial["probe_patched"] == expected.accuracy and 0 <= trial["probe_finetuned"] <= 1
    page = (output / "report.md").read_text()
    assert "| recall patched | recall fine-tuned |" in page and "recall: share of right answers to the probe." in page
    assert f" {expected.accuracy:.1%} |" in page and "recall" in out
