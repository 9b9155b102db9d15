"""The experiments: what is published is what their figures say, and their code runs, in small."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from hf_masking.evaluation import probes

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "experiments"
NAMES = sorted(path.stem for path in SCRIPTS.glob("e[0-9]*.py"))
PAGE = ROOT / "docs" / "experiments.md"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in [path.stem for path in SCRIPTS.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_what_it_expects(script, name):
    text = script(name).__doc__
    assert text.startswith(f"{name.split('_')[0].upper()}: ")
    for part in ("\nPublished", "\nExpected before the run", "\nControl, "):
        assert part in text, part
    assert f"<!-- {name} -->" in PAGE.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "experiments").glob("*.json")), ids=lambda path: path.stem)
def test_verdicts_follow_from_the_rows(script, path):
    kept = json.loads(path.read_text())
    assert kept["command"] == f"python scripts/experiments/{path.stem}.py"
    assert kept["claims"] == [vars(claim) for claim in script(path.stem).judge(kept["rows"])]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_tables_of_the_runs(script):
    page = PAGE.read_text()
    assert page == script("lab").tables(page), "run python scripts/experiments/lab.py"


def small(experiment, **sizes):
    for name, value in sizes.items():
        assert hasattr(experiment, name)
        setattr(experiment, name, value)
    return experiment


def test_images(script):
    experiment = script("e4_sparse_transformer")
    drawn = experiment.images(torch.Generator().manual_seed(0), 4)
    same = (drawn[:, experiment.WIDTH :] == drawn[:, : -experiment.WIDTH]).float().mean()
    assert 0.87 < same < 0.95


def test_the_fact_stands_before_its_questions(script):
    experiment = small(script("e5_long_hybrid"), STEPS=2, BATCH=2)
    tokens, values, places = experiment.texts(512, 3, torch.Generator().manual_seed(0))
    for row, value, place in zip(tokens, values, places, strict=True):
        facts = ((row >= experiment.FILLER) & (row < experiment.ASK)).nonzero()[:, 0]
        assert facts.tolist() == [place] and row[place] == experiment.FILLER + value
        assert ((row == experiment.ASK).nonzero() > place).all()
    experiment.train(experiment.model_under(experiment.MASKS["blocks and summaries"][0]))


def test_a_probe_asks_what_the_long_hybrid_has_learnt(script):
    experiment = script("e5_long_hybrid")
    item, other = probes.Questions(experiment.Fact(), 300, distances=[7, 1, 250], questions=2)
    assert item.distances.tolist() == [1, 7, 250]
    for column, back, some, right in zip(item.asked, item.distances, item.candidates[..., 0], item.right, strict=True):
        assert sorted(some.tolist()) == list(range(experiment.FILLER, experiment.ASK))
        assert item.token_ids[column] == experiment.ASK
        assert item.token_ids[column - back] == some[right]
    assert int((item.token_ids >= experiment.FILLER).sum()) == 4
    assert not torch.equal(item.token_ids, other.token_ids)


@pytest.mark.parametrize("task", ["recall", "translation"])
def test_tasks_of_looking_up(script, task):
    experiment = small(script("e7_adaptive"), STEPS=2)
    task = getattr(experiment, task)
    tokens, right = task(torch.Generator().manual_seed(0))
    assert tokens.shape == (experiment.BATCH, 128 if task.__name__ == "recall" else 2 * experiment.LENGTH)
    if task.__name__ == "recall":
        bound = {(int(t) // experiment.VALUES): int(t) % experiment.VALUES for t in tokens[0, :64]}
        assert [bound[int(t) - 512] for t in tokens[0, 64:]] == right[0].tolist()
    else:
        assert (tokens[0, :64].flip(0) + experiment.WORDS).tolist() == right[0].tolist()
        assert tokens[0, 65:].tolist() == right[0, :-1].tolist()
    assert 0 <= experiment.right_answers(experiment.learnt(task, 0), task) < 0.5


@pytest.mark.parametrize("key_first", [False, True])
def test_coded_texts(script, key_first):
    experiment = small(script("e8_prefix"), STEPS=2)
    tokens = experiment.texts(torch.Generator().manual_seed(0), key_first)[0].tolist()
    key = {(t - experiment.ENTRY) // 3: (t - experiment.ENTRY) % 3 for t in tokens if 13 <= t < experiment.MEANING}
    counts = [0, 0, 0]
    for t in tokens:
        if 1 <= t < experiment.ENTRY:
            counts[key[t - experiment.CODE]] += 1
    assert len(key) == experiment.CODES and counts[tokens[-1] - experiment.MEANING] == max(counts)
    assert (tokens[0] >= experiment.ENTRY) == key_first
    assert 0 <= experiment.right_answers(experiment.learnt("prefix|causal", key_first, 0), key_first) < 1
