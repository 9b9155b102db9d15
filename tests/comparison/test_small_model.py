"""The small model that is compared on when none is named."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_masking.comparison import small_model as comparison
from hf_masking.comparison.small_model import SMALL, Recipe, small_model
from hf_masking.evaluation import Text
from hf_masking.training import TrainingSettings

from ..conftest import TEXT


class KilledError(Exception):
    pass


STAGE = TrainingSettings(context=32, steps=4, batch_size=2, warmup_steps=1, eval_every=2, checkpoint_every=2)
RECIPE = Recipe(
    SMALL.shape | {"hidden_size": 16, "intermediate_size": 16},
    (STAGE, dataclasses.replace(STAGE, context=64, steps=3, seed=1, eval_every=3, checkpoint_every=3)),
    vocabulary=300,
    eval_tokens=129,
)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MASKING_CACHE", str(tmp_path))
    return Text("x", TEXT).split(0.3)


@pytest.mark.parametrize("place", [(1, 3), (2, 2)])
def test_the_small_model_is_trained_once_and_resumes(texts, place):
    told = []

    def kill(record):
        if (record["stage"], record["step"]) == place:
            raise KilledError

    def tell(record):
        if "loss" in record:
            told.append((record["stage"], record["step"]))

    with pytest.raises(KilledError):
        small_model(*texts, kill, RECIPE)
    folder = small_model(*texts, tell, RECIPE)
    whole = [(1, step) for step in range(1, 5)] + [(2, step) for step in range(1, 4)]
    # A stage continues from its last checkpoint.
    assert told == whole[whole.index({(1, 3): (1, 3), (2, 2): (2, 1)}[place]) :]
    ids = AutoTokenizer.from_pretrained(folder)("The lazy dog")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits.shape == (1, len(ids), 300)

    def nothing(record):
        raise AssertionError("trained a second time")

    assert small_model(*texts, nothing, RECIPE) == folder


def test_a_stage_continues_with_the_weights_of_the_one_before(texts):
    perplexities = {}

    def note(record):
        if "perplexity" in record:
            perplexities[record["stage"], record["step"]] = record["perplexity"]

    short = dataclasses.replace(RECIPE, stages=(STAGE, dataclasses.replace(STAGE, seed=1)))
    small_model(*texts, note, short)
    assert perplexities[2, 0] == pytest.approx(min(perplexities[1, 2], perplexities[1, 4]))
    assert perplexities[2, 0] < perplexities[1, 0]


def test_a_text_is_tokenized_in_parts(texts, monkeypatch):
    train, held_out = texts
    tokenizer = comparison.small_tokenizer(train, held_out, RECIPE)
    whole = tokenizer(train.content)["input_ids"]
    monkeypatch.setattr(comparison, "_PART", 100)
    assert comparison._train_ids(train, tokenizer, 10**6).tolist() == whole
    assert comparison._train_ids(train, tokenizer, 333).tolist() == whole[:333]
