"""The small model that is compared on when none is named."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_masking.comparison.small_model import SMALL, Recipe, small_model
from hf_masking.evaluation import Text

from ..conftest import TEXT


class KilledError(Exception):
    pass


def test_the_small_model_is_trained_once_and_resumes(tmp_path, monkeypatch):
    recipe = Recipe(
        SMALL.shape | {"hidden_size": 16, "intermediate_size": 16},
        dataclasses.replace(SMALL.settings, context=32, steps=4, batch_size=2, eval_every=2, checkpoint_every=2),
        vocabulary=300,
    )
    monkeypatch.setenv("HF_MASKING_CACHE", str(tmp_path))
    train, held_out = Text("x", TEXT).split(0.3)
    steps = []

    def kill(record):
        if record["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        small_model(train, held_out, kill, recipe)
    folder = small_model(train, held_out, lambda record: steps.append(record["step"]), recipe)
    assert steps == [3, 4, 4]
    ids = AutoTokenizer.from_pretrained(folder)("The lazy dog")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits.shape == (1, len(ids), 300)

    def nothing(record):
        raise AssertionError("trained a second time")

    assert small_model(train, held_out, nothing, recipe) == folder
