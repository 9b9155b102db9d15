"""Training, evaluation and decoding under all masks: the same work, interleaved."""

import logging

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.comparison import speed
from hf_masking.comparison.trials import Experiment
from hf_masking.modeling import get_mask_config
from hf_masking.training import TrainingSettings

from ..modeling.families import build, tokens

MASKS = ["causal", "window:3", "adaptive_span:max=8"]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 2)
    build("llama").save_pretrained(tmp_path / "model")
    settings = TrainingSettings(context=16, steps=2, batch_size=3)
    return Experiment(str(tmp_path / "model"), tokens(1, 300)[0].numpy(), tokens(1, 33)[0].numpy(), settings, stride=16)


@pytest.fixture
def seen(monkeypatch):
    """Record the arguments of every forward of a model, by its mask."""
    calls, plain = [], Experiment.patch

    def patch(self, model, mask, **more):
        patched = plain(self, model, mask, **more)
        name = str(parse_mask(mask))
        assert str(get_mask_config(patched).mask) == name
        patched.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((name, module.training, kwargs)), with_kwargs=True
        )
        return patched

    monkeypatch.setattr(Experiment, "patch", patch)
    # Once per turn, however short it is.
    monkeypatch.setattr("hf_masking.evaluation.timing.seconds_of", lambda call, device: (call(), 1.0)[1])
    return calls


@pytest.mark.parametrize(("work", "trains"), [(speed.training, True), (speed.evaluation, False)])
def test_every_mask_gets_the_same_batch(experiment, seen, work, trains):
    timings = work(experiment, MASKS)
    assert list(timings) == MASKS and all(timing.seconds[0] == 1 / 48 for timing in timings.values())
    assert [mask for mask, *_ in seen[:9]] == MASKS + MASKS + [*MASKS[1:], MASKS[0]]
    for _, training, arguments in seen:
        assert training == trains and arguments["input_ids"].shape == (3, 16)
        assert torch.equal(arguments["input_ids"], seen[0][2]["input_ids"])


def test_training_steps_leave_the_weights_as_they_are(experiment, monkeypatch):
    kept, stepped, plain = [], [], speed.optimizer_of
    monkeypatch.setattr(Experiment, "load", lambda self, load=Experiment.load: kept.append(load(self)) or kept[-1])

    def optimizer_of(models, settings):
        optimizer = plain(models, settings)
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        # One set of weights, and what the adaptive mask adds.
        assert sum(p.numel() for p in owned) < 1.1 * sum(p.numel() for p in kept[0].parameters())
        optimizer.register_step_post_hook(lambda *_: stepped.append(all(p.grad is not None for p in owned[:3])))
        return optimizer

    monkeypatch.setattr(speed, "optimizer_of", optimizer_of)
    before = {name: value.clone() for name, value in experiment.load().state_dict().items()}
    kept.clear()
    speed.training(experiment, MASKS)
    assert len(stepped) >= 9 and all(stepped)
    for name, value in kept[0].state_dict().items():
        assert torch.equal(value, before[name]), name


def test_tokens_are_decoded_with_a_full_cache_and_taken_back(experiment, seen):
    timings = speed.decoding(experiment, MASKS)
    assert list(timings) == MASKS
    columns = {mask: [int(call["position_ids"]) for name, _, call in seen if name == mask and "position_ids" in call]
               for mask in MASKS}  # fmt: skip
    for mask in MASKS:
        assert columns[mask][:16] == [*range(8, 16)] * 2
    prompts = [call["input_ids"].shape for *_, call in seen if call.get("input_ids") is not None]
    assert prompts == [(1, 8)] * 3


def test_a_mask_that_fails_is_left_out_with_a_warning(experiment, monkeypatch, caplog):
    def loss(model, tokens, plain=speed._loss):
        if str(get_mask_config(model).mask) == "window:3":
            raise RuntimeError("no memory left")
        return plain(model, tokens)

    monkeypatch.setattr(speed, "_loss", loss)
    with caplog.at_level(logging.WARNING, "hf_masking"):
        assert list(speed.evaluation(experiment, MASKS)) == [MASKS[0], MASKS[2]]
    assert "window:3 could not be timed: no memory left" in caplog.messages


def test_a_process_that_is_killed_costs_one_column(experiment, monkeypatch, caplog):
    def killed(work, *_):
        if work is speed.training:
            raise speed.BrokenProcessPool
        return {"causal": work.__name__}

    monkeypatch.setattr(speed, "in_own_process", killed)
    measured = speed.speeds(experiment, MASKS)
    assert measured == speed.Speeds({}, {"causal": "evaluation"}, {"causal": "decoding"})
    assert "the process that times training was killed" in caplog.text
