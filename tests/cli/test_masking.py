"""Masks of `check`, and options that go with a mask."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from hf_masking import patch_model
from hf_masking.cli import check


def test_what_the_checks_found_survives_a_mask_that_fails(run, model_folder, tmp_path, monkeypatch):
    plain = check.check_model

    def check_model(model):
        if model.config.hf_masking["mask"] == "window:3":
            raise RuntimeError("out of luck")
        return plain(model)

    monkeypatch.setattr(check, "check_model", check_model)
    arguments = ("--length", "9", "--layer", "1=causal", "--output", tmp_path / "x.json")
    code, out, err = run("check", model_folder, "--mask", "window:3", "--mask", "causal", *arguments)
    assert code == 1, err
    assert "causal: all rows pass" in out and "\nwindow:3; layer 1: causal failed: RuntimeError: out of luck\n" in out
    report = json.loads((tmp_path / "x.json").read_text())
    assert {row["mask"] for row in report["rows"]} == {"causal"} and set(report["failed"]) == {
        "window:3; layer 1: causal"
    }
    code, out, err = run("check", model_folder, "--mask", "causal", "--mask", "heads[causal; causal; causal]")
    assert (code, out) == (2, "")
    assert "which do not divide the model's 2 query heads" in err


def test_options_that_go_with_a_mask(run, model_folder, text_file, tmp_path):
    carried = shutil.copytree(model_folder, tmp_path / "carried")
    patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:5|sinks:1").save_pretrained(carried)
    for command in ("eval", "generate", "check", "finetune"):
        more = {"eval": ["--data", text_file], "generate": ["--prompt", "a"], "check": []}
        more["finetune"] = ["--data", text_file, "--output", tmp_path / "out"]
        for option in (("--layer", "0=causal"), ("--replace-model-window",)):
            code, _, err = run(command, carried, *more[command], *option)
            assert code == 2
            assert f"error: {option[0]} goes with --mask; name the mask that the model carries" in err


def test_a_fine_tuning_says_what_it_runs(run, model_folder, text_file, tmp_path):
    carried = shutil.copytree(model_folder, tmp_path / "carried")
    patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:5", layers={1: "causal"}).save_pretrained(
        carried
    )
    small = ("--context", "16", "--steps", "1", "--batch-size", "2", "--eval-tokens", "65")
    code, _, err = run("finetune", carried, "--data", text_file, *small, "--output", tmp_path / "run")
    assert code == 0, err
    assert "warning: --steps 1 end before --warmup-steps 20 do" in err
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (described["mask"], described["layers"]) == ("window:5", {"1": "causal"})
    assert described["replace_model_window"] is False


@pytest.mark.parametrize("command", ["generate", "finetune"])
def test_a_command_with_one_mask_says_so_in_its_help(run, command):
    code, out, _ = run(command, "--help")
    letters = "".join(out.replace("│", "").split())  # lines may break anywhere, and stand in a frame
    assert code == 0 and "insteadof--mask" in letters and "likeonemore--mask" not in letters
