"""The comparison's processes, and the small model that it trains."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_masking import parse_mask
from hf_masking.evaluation import Text, in_own_process
from hf_masking.training import TrainingSettings
from hf_masking.training.comparison import Experiment, Trial, compare
from hf_masking.training.comparison_folder import ComparisonFolder
from hf_masking.training.small_model import SMALL, Recipe, small_model
from hf_masking.training.summary import Figure, segments, summarize

from ..cli.conftest import TEXT
from ..modeling.families import build, tokens


def die():
    os._exit(9)


def test_each_process_is_its_own():
    own = signal.getsignal(signal.SIGINT)
    assert in_own_process(os.getpid) != os.getpid()
    # Ctrl-C is for the process that a user has started, even while the other one is starting.
    assert in_own_process(signal.getsignal, signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == own


def test_a_row_that_is_killed_says_so_and_the_next_goes_on(tmp_path, monkeypatch):
    build("llama").save_pretrained(tmp_path / "model")
    settings = TrainingSettings(context=16, steps=2, batch_size=2, eval_every=2)
    train_ids, eval_ids = tokens(1, 300)[0].numpy(), tokens(1, 33)[0].numpy()
    experiment = Experiment(str(tmp_path / "model"), train_ids, eval_ids, settings, stride=16)
    monkeypatch.setattr("hf_masking.training.comparison.measure", die_on_window)
    killed, wrong, fine = compare(experiment, [("window:3", 0), ("windw:3", 0), ("causal", 1)])
    assert killed.error == "its process was killed (most often: out of memory)"
    assert wrong.error.startswith("unknown mask 'windw'")
    assert fine == "measured causal, 1"


def die_on_window(experiment, mask, seed, tell):

    if parse_mask(mask).name == "window":
        os._exit(9)
    return f"measured {mask}, {seed}"


def trial(mask, seed, *perplexities, **measured):
    return Trial(mask, seed, recovery=dict(enumerate(perplexities)), **measured)


def test_seeds_are_paired():
    trials = [trial("causal", 0, 9.0, 4.0), trial("causal", 1, 9.0, 8.0)]
    trials += [trial("window:3", 1, 9.0, 8.8), trial("window:3", 0, 9.0, 4.2), Trial("window:3", 2, error="killed")]
    causal, window = summarize(["causal", "window:3"], trials)
    assert window.error == "killed"
    assert window.finetuned.mean == pytest.approx(6.5)
    # 10% and 5% more: that the seeds differ by a factor of 2 says nothing of the masks.
    assert window.excess(causal).mean == pytest.approx(0.075)
    assert window.excess(causal).deviation == pytest.approx(0.05 / 2**0.5)
    assert window.recovery[0] == Figure(9.0, 0.0)
    assert Figure.of([3.0]) == Figure(3.0, None)


def test_losses_are_told_by_position():
    assert segments(512) == [range(64), range(64, 128), range(128, 256), range(256, 384), range(384, 512)]
    assert segments(16) == [range(2), range(2, 4), range(4, 8), range(8, 12), range(12, 16)]
    trials = [trial("causal", seed, 9.0, by_position=(None, seed + 1.0, 3.0)) for seed in range(2)]
    (causal,) = summarize(["causal"], trials)
    assert causal.loss(range(2)) == 1.5
    assert causal.loss(range(1)) is None


def test_a_trial_is_kept_as_it_was(tmp_path):
    folder = ComparisonFolder(tmp_path)
    kept = trial("window:3|sinks:1", 4, 9.0, 8.0, by_position=(None, 1.0), density=0.5)
    folder.keep(kept)
    assert folder.find("window:3|sinks:1", 4) == kept
    assert folder.find("window:3|sinks:1", 5) is None
    assert folder.find("window:3", 4) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"holds no finished trial of causal, seed 0 \(missing or unknown: bits_per_byte, .*\)"),
        ("[1]", r"is damaged \(expected an object, got list\)"),
        ('{"mask": "causal"', r"is damaged \(.*\)"),
        ({"colour": "blue"}, r"holds no finished trial of causal, seed 0 \(missing or unknown: colour\)"),
        ({"recovery": []}, r"holds no finished trial .*"),
        ({"recovery": {"0": None}}, r"holds no finished trial .*"),
        ({"recovery": {}}, r"holds no finished trial .*"),
        ({"seed": 1}, r"holds no finished trial of causal, seed 0 \(it is one of causal, seed 1, .*"),
        ({"density": "much"}, r"holds no finished trial of causal, seed 0 \(density must be a number, got 'much'\)"),
    ],
)
def test_a_damaged_trial_is_named(tmp_path, content, message):
    folder = ComparisonFolder(tmp_path)
    folder.keep(trial("causal", 0, 9.0, 8.0))
    (path,) = folder.trials.iterdir()
    changed = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(changed)
    with pytest.raises(ValueError, match=rf"{path.name} {message}; remove it, and --resume measures it again"):
        folder.find("causal", 0)


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
