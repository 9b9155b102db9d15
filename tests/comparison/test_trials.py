"""The processes of the trials."""

import os

from hf_masking import parse_mask
from hf_masking.comparison.trials import Experiment, try_masks
from hf_masking.training import TrainingSettings

from ..modeling.families import build, tokens


def test_a_row_that_is_killed_says_so_and_the_next_goes_on(tmp_path, monkeypatch):
    build("llama").save_pretrained(tmp_path / "model")
    settings = TrainingSettings(context=16, steps=2, batch_size=2, eval_every=2)
    train_ids, eval_ids = tokens(1, 300)[0].numpy(), tokens(1, 33)[0].numpy()
    experiment = Experiment(str(tmp_path / "model"), train_ids, eval_ids, settings, stride=16)
    monkeypatch.setattr("hf_masking.comparison.trials.measure", die_on_window)
    killed, wrong, fine = try_masks(experiment, [("window:3", 0), ("windw:3", 0), ("causal", 1)])
    assert killed.error == "its process was killed (most often: out of memory)"
    assert wrong.error.startswith("unknown mask 'windw'")
    assert fine == "measured causal, 1"


def die_on_window(experiment, mask, seed, tell):

    if parse_mask(mask).name == "window":
        os._exit(9)
    return f"measured {mask}, {seed}"
