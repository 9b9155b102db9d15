"""Finished trials on disk."""

import json

import pytest

from hf_masking.comparison.folder import ComparisonFolder

from .make import trial


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
