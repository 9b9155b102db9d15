"""Right answers by distance, of models of which they are known."""

import math
import re
import types

import pytest
import torch
from torch import nn

from hf_masking import patch_model, patched, probe, probe_task
from hf_masking.evaluation import Copy, Recall
from hf_masking.evaluation.probes.probing import _result

from ...modeling.families import VOCABULARY, build
from .induction import induction_model
from .tokenizers import CHARACTERS, of_characters

CONTEXT = 96
TASKS = {"recall": Recall(range(3, 60)), "copy": Copy(range(3, 60))}
CHANCE = 1 / 8


@pytest.fixture(scope="module")
def inductive():
    return induction_model(vocabulary=60, positions=CONTEXT)


def near_chance(accuracy, questions):
    return abs(accuracy - CHANCE) < 4 * math.sqrt(CHANCE * (1 - CHANCE) / questions)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_looks_up_is_right_as_far_as_its_mask_reaches(inductive, name):
    everything = probe(inductive, TASKS[name], context=CONTEXT)
    assert everything.accuracy == 1 and everything.standard_error == 0 and everything.chance == CHANCE
    assert near_chance(everything.control, everything.questions)
    assert everything.by_distance[-1].distance == (CONTEXT - 2 if name == "recall" else CONTEXT - 9)
    with patched(inductive, "window:33", check=False):
        window = probe(inductive, TASKS[name], context=CONTEXT, distances=[16, 28, 32, 48, 64, 80], questions=200)
    for there in window.by_distance:
        # A window of 33 keys reaches back to distance 32.
        assert there.questions == 200
        assert there.accuracy == 1 if there.distance <= 32 else near_chance(there.accuracy, 200), there
    assert near_chance(window.control, window.questions)
    with patched(inductive, "window:20|offsets:0,64", check=False):
        offsets = probe(inductive, TASKS[name], context=CONTEXT, distances=[16, 48, 64])
    assert [there.accuracy > 0.9 for there in offsets.by_distance] == [True, False, True]


class Guesses(nn.Module):
    """A model that says nothing: random logits."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight, self.vocabulary = nn.Parameter(torch.zeros(1)), vocabulary
        self.draw = torch.Generator().manual_seed(0)

    def forward(self, input_ids, use_cache, past_key_values=None):
        logits = torch.randn(*input_ids.shape, self.vocabulary, generator=self.draw)
        return types.SimpleNamespace(logits=logits, past_key_values=None)


def test_a_model_that_guesses_is_at_chance():
    tokenizer = of_characters()
    for name in ("recall", "copy", "passkey"):
        result = probe(Guesses(len(CHARACTERS) + 1), probe_task(name, tokenizer), context=120, questions=150)
        assert near_chance(result.accuracy, result.questions) and near_chance(result.control, result.questions)
        assert all(near_chance(there.accuracy, there.questions) for there in result.by_distance)
        assert result.questions == sum(there.questions for there in result.by_distance) >= 150


def test_the_control_shows_answers_that_stand_at_one_place():
    zeros = torch.zeros(100, dtype=torch.long)
    assert _result(zeros, zeros, zeros + 5, 8).control == 1
    spread = torch.arange(800) % 8
    result = _result(spread, spread, torch.arange(800) // 400, 8)
    assert result.accuracy == 1 and near_chance(result.control, 800)
    half = _result(spread, torch.where(torch.arange(800) < 400, spread, (spread + 1) % 8), torch.arange(800) // 600, 8)
    assert half.accuracy == 0.5 and half.standard_error == pytest.approx(math.sqrt(0.25 / 800))
    assert [(there.distance, there.questions) for there in half.by_distance] == [(0, 600), (1, 200)]
    assert [there.accuracy for there in half.by_distance] == [pytest.approx(2 / 3), 0]


def test_nothing_depends_on_the_batches_and_the_mode_comes_back():
    model = patch_model(build("gpt2", resid_pdrop=0.5), "window:9|sinks:1", check=False).train()
    task, seen = Recall(range(3, VOCABULARY)), []
    one = probe(model, task, context=40, batch_size=7, questions=20, on_progress=seen.append)
    assert one == probe(model, task, context=40, batch_size=1, questions=20)
    assert model.training and sum(seen) == one.questions == 20 * 4 and len(seen) == 3


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        ("block_causal:4", {}, "mask block_causal:4 looks 3 tokens ahead, so the accuracy of a probe would score"),
        ("prefix|causal", {}, "has no marks, so the accuracy of a probe is not defined"),
        ("causal", {"context": 129}, "a context of 129 tokens takes 129 positions, and the model has 128"),
        ("causal", {"task": Recall(range(200))}, "and the model has embeddings for 97 tokens, 0 to 96"),
        ("causal", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_refused(mask, options, message):
    model = patch_model(build("gpt2"), mask, check=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        probe(model, **{"task": Recall(range(97)), "context": 40} | options)
