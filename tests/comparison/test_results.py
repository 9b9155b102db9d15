"""Means and standard deviations over seeds."""

import pytest

from hf_masking.comparison.results import Figure, results_by_mask, segments
from hf_masking.comparison.trials import Trial

from .make import trial


def test_seeds_are_paired():
    trials = [trial("causal", 0, 9.0, 4.0), trial("causal", 1, 9.0, 8.0)]
    trials += [trial("window:3", 1, 9.0, 8.8), trial("window:3", 0, 9.0, 4.2), Trial("window:3", 2, error="killed")]
    causal, window = results_by_mask(["causal", "window:3"], trials)
    assert window.error == "killed"
    assert window.finetuned.mean == pytest.approx(6.5)
    # 10% and 5% more: that the seeds differ by a factor of 2 says nothing of the masks.
    assert window.excess(causal).mean == pytest.approx(0.075)
    assert window.excess(causal).deviation == pytest.approx(0.05 / 2**0.5)
    assert window.recovery[0] == Figure(9.0, 0.0)
    assert Figure.of([3.0]) == Figure(3.0, None)


def test_losses_are_told_by_position():
    assert [part.stop for part in segments(8192)] == [256, 512, 1024, 2048, 4096, 8192]
    assert [part.stop for part in segments(100)] == [3, 6, 12, 25, 50, 100]
    assert [part.stop for part in segments(5)] == [1, 2, 5]
    assert [part.stop for part in segments(64, per_octave=2)][-5:] == [16, 23, 32, 45, 64]
    for context in (1, 5, 512):
        assert [place for part in segments(context) for place in part] == list(range(context))
    trials = [trial("causal", seed, 9.0, by_position=(None, seed + 1.0, 3.0)) for seed in range(2)]
    (causal,) = results_by_mask(["causal"], trials)
    assert causal.loss(range(2)) == 1.5
    assert causal.loss(range(1)) is None
