"""The comparison's processes, and the small model that it trains."""

import dataclasses
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_masking.evaluation import Text, in_own_process
from hf_masking.training import TrainingSettings, small_model
from hf_masking.training.comparison import Experiment, compare

from ..cli.conftest import TEXT
from ..modeling.families import build, tokens


def die():
    os._exit(9)


def test_each_process_is_its_own():
    assert in_own_process(os.getpid) != os.getpid()


def test_a_row_that_is_killed_says_so_and_the_next_goes_on(tmp_path, monkeypatch):
    build("llama").save_pretrained(tmp_path / "model")
    torch.save({"train": tokens(1, 300)[0], "eval": tokens(1, 33)[0]}, tmp_path / "tokens.pt")
    settings = TrainingSettings(context=16, steps=2, batch_size=2, eval_every=2)
    experiment = Experiment(str(tmp_path / "model"), tmp_path / "tokens.pt", settings, stride=16)
    monkeypatch.setattr("hf_masking.training.comparison.measure", die_on_window)
    killed, wrong, fine = compare(experiment, ["window:3", "windw:3", "causal"])
    assert killed.error == "its process was killed (most often: out of memory)"
    assert wrong.error.startswith("unknown mask 'windw'")
    assert fine == "measured causal"


def die_on_window(experiment, mask, on_record):
    from hf_masking.masks import Mask

    if Mask.parse(mask).name == "window":
        os._exit(9)
    return f"measured {mask}"


class KilledError(Exception):
    pass


def test_the_small_model_is_trained_once_and_resumes(tmp_path, monkeypatch):
    settings = dataclasses.replace(
        small_model.SETTINGS, context=32, steps=4, batch_size=2, eval_every=2, checkpoint_every=2
    )
    shape = small_model.SHAPE | {"hidden_size": 16, "intermediate_size": 16}
    monkeypatch.setattr(small_model, "SETTINGS", settings)
    monkeypatch.setattr(small_model, "SHAPE", shape)
    monkeypatch.setattr(small_model, "VOCABULARY", 300)
    monkeypatch.setenv("HF_MASKING_CACHE", str(tmp_path))
    train, held_out = Text("x", TEXT).split(0.3)
    steps = []

    def kill(record):
        if record["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        small_model.small_model(train, held_out, kill)
    folder = small_model.small_model(train, held_out, lambda record: steps.append(record["step"]))
    assert steps == [3, 4, 4]
    ids = AutoTokenizer.from_pretrained(folder)("The lazy dog")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits.shape == (1, len(ids), 300)

    def nothing(record):
        raise AssertionError("trained a second time")

    assert small_model.small_model(train, held_out, nothing) == folder
