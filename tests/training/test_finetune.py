"""The training loop: what a step computes, and that a run can be killed anywhere."""

import dataclasses
import itertools
import json
import re
import sys
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from hf_masking import from_pretrained, patch_model, perplexity
from hf_masking.training import Contexts, TrainingSettings, finetune
from hf_masking.training.data import IGNORED
from hf_masking.training.run_folder import RunFolder

from ..modeling.families import build, tokens

TRAIN, EVAL = tokens(1, 700, seed=1)[0], tokens(1, 100, seed=2)[0]
SETTINGS = TrainingSettings(
    context=16, steps=8, batch_size=6, micro_batch_size=4, learning_rate=3e-3, warmup_steps=2, eval_every=3,
    checkpoint_every=2,
)  # fmt: skip


def model(**changes):
    return patch_model(build("llama", **changes), "window:4|sinks:1", check=False)


def test_every_token_is_a_label_once_a_pass():
    contexts = Contexts.pack(torch.arange(100, 171), 16)
    assert contexts.inputs.shape == contexts.labels.shape == (5, 16)
    real = contexts.labels != IGNORED
    assert contexts.labels[real].tolist() == list(range(101, 171))
    assert torch.equal(contexts.inputs[real] + 1, contexts.labels[real])
    chosen = [index for step in range(5) for index in contexts.indices(step, 3, seed=7)]
    assert Counter(chosen[:5]) == Counter(chosen[5:10]) == Counter(range(5))
    assert chosen[:5] != chosen[5:10]
    assert contexts.indices(0, 15, seed=8) != chosen
    assert "attention_mask" not in contexts.batch([0, 1])
    assert (
        contexts.batch([0, 4])["attention_mask"].sum()
        == 16 + 6
        == 22
        == Contexts(contexts.inputs[[0, 4]], contexts.labels[[0, 4]]).scored()
    )


def test_a_step_is_that_of_plain_pytorch():
    """Accumulated micro-batches of unequal weight give the gradient of the mean over all tokens of the step."""
    settings = dataclasses.replace(SETTINGS, steps=2, warmup_steps=0, batch_size=40, micro_batch_size=7)
    trained = model()
    losses = finetune(trained, TRAIN[:640], EVAL, settings).losses

    plain = model()
    contexts = Contexts.pack(TRAIN[:640], 16)
    assert any((contexts.labels[index] == IGNORED).any() for index in contexts.indices(0, 40, settings.seed))
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
    for step, rate in enumerate([1.0, 0.5]):  # the cosine at 0 and at half of two steps
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        batch = contexts.batch(contexts.indices(step, 40, settings.seed))
        labels = batch.pop("labels")
        loss = F.cross_entropy(plain(**batch).logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        assert abs(loss.item() - losses[step]) < 1e-5
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for one, other in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_gradient_checkpointing_and_micro_batches_change_nothing():
    expected = finetune(model(), TRAIN, EVAL, SETTINGS).losses
    for change in ({"gradient_checkpointing": True}, {"micro_batch_size": 1}, {"micro_batch_size": None}):
        losses = finetune(model(), TRAIN, EVAL, dataclasses.replace(SETTINGS, **change)).losses
        assert losses == pytest.approx(expected, abs=1e-5)


def test_bf16_trains():
    result = finetune(model(), TRAIN, EVAL, dataclasses.replace(SETTINGS, bf16=True))
    expected = finetune(model(), TRAIN, EVAL, SETTINGS)
    assert result.losses != expected.losses
    assert result.losses == pytest.approx(expected.losses, abs=0.3)


class KilledError(Exception):
    pass


def kill_after(steps):
    def on_record(record):
        if record["step"] == steps and "loss" in record:
            raise KilledError

    return on_record


@pytest.mark.parametrize("killed_after", [1, 3, 6, 7])
def test_a_resumed_run_ends_like_an_unbroken_one(tmp_path, killed_after):
    """With dropout, so that the random states count too."""
    options = {"attention_dropout": 0.2}
    unbroken = finetune(model(**options), TRAIN, EVAL, SETTINGS, output=tmp_path / "unbroken")
    with pytest.raises(KilledError):
        finetune(model(**options), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", on_record=kill_after(killed_after))
    resumed = finetune(model(**options), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", resume=True)
    assert resumed.losses == unbroken.losses
    assert resumed.evaluations == unbroken.evaluations

    def curve(name):
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]

    assert curve("run") == curve("unbroken")
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["step-000006", "step-000008"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path)
    again = finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path, resume=True)
    assert (again.losses, again.evaluations) == (first.losses, first.evaluations)


def test_the_best_model_is_saved_with_its_mask(tmp_path):
    settings = dataclasses.replace(SETTINGS, learning_rate=0.3, steps=9)
    result = finetune(model(), TRAIN, EVAL, settings, output=tmp_path)
    assert set(result.evaluations) == {0, 3, 6, 9}
    loaded = from_pretrained(tmp_path / "best")
    assert loaded.config.hf_masking["mask"] == "window:4|sinks:1"
    step, best = result.best
    assert best == min(result.evaluations[step] for step in (3, 6, 9))
    assert step != 9, "the test needs a run that gets worse at its end"
    assert perplexity(loaded, EVAL, context=16, batch_size=8).perplexity == pytest.approx(best, rel=1e-5)


def test_what_the_model_came_with_is_measured_and_never_the_best(tmp_path):
    measured = itertools.count(5)

    def worse_and_worse(model, token_ids):
        return dataclasses.replace(perplexity(model, token_ids, context=16), perplexity=float(next(measured)))

    result = finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path, evaluate=worse_and_worse)
    assert result.evaluations == {0: 5, 3: 6, 6: 7, 8: 8}
    assert result.best == (3, 6)
    # It is measured before anything is trained, and never again.
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["perplexity"] == 5
    assert finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path, resume=True).evaluations == result.evaluations
    expected = perplexity(model(), EVAL, context=16, batch_size=8).perplexity
    assert finetune(model(), TRAIN, EVAL, SETTINGS).evaluations[0] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune(model(), TRAIN, EVAL, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_another_run(tmp_path):
    finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", description={"mask": "window:4"})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ValueError, match=r"holds another run; give --resume to continue it, or another --output"):
        finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", description={"mask": "window:4"})
    with pytest.raises(ValueError, match=r"^mask must be as in .* where mask is 'window:4', got 'causal'; give"):
        finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", resume=True, description={"mask": "causal"})
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not an empty folder and holds no run"):
        finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "other")


def test_one_process_at_a_time(tmp_path):
    said = r"another process works in .*run; wait for it, or use another folder"
    with RunFolder(tmp_path / "run").claimed({}, resume=False), pytest.raises(ValueError, match=said):
        finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run")
    assert not list(tmp_path.rglob(".lock"))


def test_a_cut_line_in_the_log_is_forgotten(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"step": 1, "loss": 2.0, "tokens_per_second": 5.0})
    run.log({"step": 2, "loss": 1.0, "tokens_per_second": 5.0})
    with run.log_path.open("a") as file:
        file.write('{"step": 3, "lo')
    run.rewind_log(1)
    assert run.log_path.read_text() == '{"step": 1, "loss": 2.0, "tokens_per_second": 5.0}\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"lora": 0}, "lora must be at least 1, got 0"),
        ({"lora_alpha": 8.0}, "lora_alpha goes with lora, got 8.0 without it"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"mask_learning_rate": float("nan")}, "mask_learning_rate must be greater than 0 and finite, got nan"),
        ({"max_gradient_norm": 0}, "max_gradient_norm must be greater than 0, got 0"),
        ({"lora": 2, "lora_alpha": 0}, "lora_alpha must be greater than 0 and finite, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0 and finite, got -1"),
        ({"mask_penalty": float("inf")}, "mask_penalty must be at least 0 and finite, got inf"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"context": 700}, "the text to train on has 700 tokens, and one context of 700 needs 701"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(model(), TRAIN, EVAL, dataclasses.replace(SETTINGS, **change))


def test_a_batch_must_divide_over_the_processes():
    with pytest.raises(ValueError, match="must be a multiple of their number, got 6 for 4 processes"):
        SETTINGS.check(processes=4)


def test_lookahead_and_lost_numbers_are_refused():
    with pytest.raises(ValueError, match="training on the next token would score answers that were seen"):
        finetune(patch_model(build("llama"), "block_causal:4", check=False), TRAIN, EVAL, SETTINGS)
    broken = model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the held-out loss is nan before training; the model's weights are not"):
        finetune(broken, TRAIN, EVAL, SETTINGS)
    for every, message in [(8, "the loss became nan at step"), (1, r"the held-out loss is nan after step \d; lower")]:
        wild = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup_steps=0, eval_every=every)
        with pytest.raises(ValueError, match=message):
            finetune(model(), TRAIN, EVAL, wild)


ADAPTIVE = "(adaptive_span:max=16,ramp=4&relevance:rank=2)|sinks:1"


def test_what_masks_learn_has_a_group_of_its_own_and_a_price():
    settings = dataclasses.replace(SETTINGS, steps=12, warmup_steps=0, mask_penalty=5.0, mask_learning_rate=0.1)
    records = []
    trained = patch_model(build("llama"), ADAPTIVE, check=False)
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    finetune(trained, TRAIN, EVAL, settings, on_record=records.append)
    penalties = [record["mask_penalty"] for record in records if "loss" in record]
    assert penalties[0] > 0.99
    assert penalties[-1] < 0.8
    shares = [p for name, p in trained.named_parameters() if name.endswith("share")]
    assert max(float(share.detach().max()) for share in shares) < 0.8
    # Nothing decays what is learned: at a price of 0 and a loss that does not depend on it, it stays.
    still = patch_model(build("llama"), "adaptive_span:max=400,ramp=4", check=False)
    finetune(still, TRAIN, EVAL, dataclasses.replace(settings, mask_penalty=0.0, weight_decay=10.0))
    assert {bool((p == 1).all()) for name, p in still.named_parameters() if name.endswith("share")} == {True}
    assert any(not torch.equal(p, before[name]) for name, p in trained.named_parameters() if "hf_masking" not in name)


def test_the_price_of_a_mask_does_not_depend_on_how_a_step_is_cut():
    trained = []
    for micro in (6, 2):
        one = patch_model(build("llama"), "adaptive_span:max=16,ramp=4", check=False)
        finetune(one, TRAIN, EVAL, dataclasses.replace(SETTINGS, micro_batch_size=micro, mask_penalty=1.0))
        trained.append(one)
    for mine, theirs in zip(*(one.parameters() for one in trained), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_a_run_under_a_mask_that_learns_resumes(tmp_path):
    def run(folder, **more):
        torch.manual_seed(0)
        one = patch_model(build("llama"), ADAPTIVE, check=False)
        return finetune(one, TRAIN, EVAL, SETTINGS, output=folder, **more)

    whole = run(tmp_path / "whole")

    class Killed(Exception):  # noqa: N818 (what happens, not what went wrong)
        pass

    def kill(record):
        if record["step"] == 5 and "loss" in record:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", on_record=kill)
    resumed = run(tmp_path / "killed", resume=True)
    assert resumed.losses == whole.losses
    loaded = from_pretrained(tmp_path / "killed" / "best", check=False)
    best = from_pretrained(tmp_path / "whole" / "best", check=False)
    for mine, theirs in zip(loaded.parameters(), best.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore")  # of peft, on what it asks the hub for
def test_adapters_are_trained_and_merged(tmp_path):
    settings = dataclasses.replace(SETTINGS, lora=2, gradient_checkpointing=True)
    before = patch_model(build("llama"), "adaptive_span:max=9|sinks:1", check=False)
    trained = patch_model(build("llama"), "adaptive_span:max=9|sinks:1", check=False)
    result = finetune(trained, TRAIN, EVAL, settings, output=tmp_path / "run")
    _, best = result.best
    loaded = from_pretrained(tmp_path / "run" / "best")
    assert perplexity(loaded, EVAL, context=16).perplexity == pytest.approx(best, rel=1e-5)
    ranks = {}
    for name, parameter in before.named_parameters():
        difference = loaded.get_parameter(name) - parameter
        ranks[name] = int(torch.linalg.matrix_rank(difference, atol=1e-6)) if difference.ndim == 2 else difference.any()
    assert {int(rank) for name, rank in ranks.items() if "proj" in name} == {2}
    assert {bool(rank) for name, rank in ranks.items() if "hf_masking" in name} == {True}
    assert {bool(rank) for name, rank in ranks.items() if "proj" not in name and "hf_masking" not in name} == {False}
    # A run with adapters resumes like any other.
    killed = patch_model(build("llama"), "adaptive_span:max=9|sinks:1", check=False)
    with pytest.raises(KilledError):
        finetune(killed, TRAIN, EVAL, settings, output=tmp_path / "two", on_record=kill_after(5))
    resumed = patch_model(build("llama"), "adaptive_span:max=9|sinks:1", check=False)
    again = finetune(resumed, TRAIN, EVAL, settings, output=tmp_path / "two", resume=True)
    assert again.losses == result.losses


def test_adapters_need_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'hf-masking\[lora\]'"):
        finetune(model(), TRAIN, EVAL, dataclasses.replace(SETTINGS, lora=2))


def learning_rates(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["learning_rate"] for record in records if "loss" in record]


def test_a_finished_run_continues_with_more_steps(tmp_path):
    longer = dataclasses.replace(SETTINGS, steps=12)
    first = finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run").losses
    result = finetune(model(), TRAIN, EVAL, longer, output=tmp_path / "run", resume=True)
    assert result.losses[:8] == first and len(result.losses) == 12
    assert list(result.evaluations) == [0, 3, 6, 8, 9, 12]
    # From step 9 on the learning rate is that of a run of 12 steps, which is still far from 0.
    finetune(model(), TRAIN, EVAL, longer, output=tmp_path / "whole")
    assert learning_rates(tmp_path / "run")[8:] == learning_rates(tmp_path / "whole")[8:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["steps"] == 12
    with pytest.raises(ValueError, match=r"steps must be as in the run in .*, where settings.steps is 12, got 8"):
        finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path / "run", resume=True)
    assert finetune(model(), TRAIN, EVAL, longer, output=tmp_path / "run", resume=True).losses == result.losses
