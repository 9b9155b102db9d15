"""Interleaved timing: the order of the turns, disturbed rounds, quartiles. All seconds are planted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_masking.evaluation import timing
from hf_masking.evaluation.timing import Calibration, Spread, Timing, interleaved, matrix_product, timed


def calibration(*seconds):
    """Return a calibration that takes these seconds, then the last of them for ever; the first one is not used."""
    left = iter((seconds[0], *seconds))
    return Calibration(lambda: next(left, seconds[-1]))


def quartile(values, share):
    """Return a quantile by its definition: linear between the neighbours in the sorted list."""
    place = share * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.integers(0, 12))
def test_quartiles_and_marks(values, quiet):
    spread = Spread.of(values, quiet)
    low, median, high = (quartile(values, share) for share in (0.25, 0.5, 0.75))
    assert [spread.low, spread.median, spread.high] == pytest.approx([low, median, high])
    if abs(high - low - 0.15 * median) > 1e-9:
        assert spread.disturbed == (quiet < 3 or high - low > 0.15 * median)
    assert Spread.of([2.0, 2.0]).disturbed and not Spread.of([2.0] * 3).disturbed


def test_a_figure_as_text():
    assert Spread(2.0, 1.5, 2.25, False).text("{:.2f}", "x", quartiles=True) == "2.00x (1.50-2.25)"
    assert Spread(1234.4, 1, 2, True).text("{:,.0f}", " tokens/s") == "1,234 tokens/s*"


def test_all_are_warmed_up_then_the_order_rotates():
    turns = []
    contenders = [lambda turn, name=name: turns.append((name, turn)) or 1.0 for name in "abc"]
    interleaved(contenders, 4, calibration(1.0), on_turn=lambda turn: turns.append(turn))
    warm_up, counted = turns[:3], turns[3:]
    assert warm_up == [("a", 0), ("b", 0), ("c", 0)]
    assert counted[1::2] == [turn for turn in range(4) for _ in range(3)]
    assert "".join(name for name, _ in counted[::2]) == "abcbcacababc"


def test_a_disturbed_round_is_repeated():
    # The calibration after round 1 is slow: rounds 1 and 2 stand beside it.
    (measured,) = interleaved([lambda turn: 100.0 + turn], 3, calibration(1.0, 1.0, 9.0, 1.0))
    assert measured == Timing((100.0, 103.0, 104.0), 3)
    assert not measured.spread.disturbed


def test_a_slow_beginning_is_seen_once_the_machine_is_quiet():
    (measured,) = interleaved([lambda turn: 100.0 + turn], 3, calibration(2.0, 2.0, 2.0, 1.0))
    assert measured == Timing((103.0, 104.0, 105.0), 3)


def test_a_calibration_within_the_tolerance_is_quiet():
    (measured,) = interleaved([lambda turn: 100.0 + turn], 3, calibration(1.0, 1.24, 1.26, 1.0), patience=0)
    # A single quiet round has no spread, so that all are shown.
    assert measured == Timing((100.0, 101.0, 102.0), 1) and measured.spread.disturbed


@pytest.mark.parametrize(("patience", "rounds"), [(0, 3), (2, 5), (None, 6)])
def test_a_machine_that_stays_busy_is_not_waited_for(patience, rounds):
    (measured,) = interleaved([lambda turn: 1.0], 3, calibration(1.0, 9.0), patience=patience)
    assert measured == Timing((1.0,) * rounds, 0)
    assert measured.spread == Spread(1.0, 1.0, 1.0, disturbed=True)


def test_the_best_calibration_is_that_of_all_measurements():
    shared = calibration(1.0, 1.0, 9.0)
    first = interleaved([lambda turn: 1.0], 1, shared)
    later = interleaved([lambda turn: 1.0], 1, shared)
    assert (first[0].quiet_rounds, later[0].quiet_rounds) == (1, 0)
    assert matrix_product("cpu") is matrix_product("cpu")
    assert 0 < matrix_product("cpu").measure() >= matrix_product("cpu").best


@pytest.mark.parametrize("at", [0, 2])
def test_what_fails_is_reported_and_the_others_go_on(at):
    calls = []

    def fails(turn):
        calls.append(turn)
        if len(calls) == 1 + at:
            raise MemoryError("no more")
        return 1.0

    failed, fine = interleaved([fails, lambda turn: 2.0], 3, calibration(1.0))
    assert str(failed.error) == "no more" and failed.seconds == () and failed.spread is None
    assert fine == Timing((2.0, 2.0, 2.0), 3)
    assert len(calls) == 1 + at


def test_speed_ups_are_paired_by_round():
    # The second round was twice as slow for both.
    fast, slow = Timing((1.0, 2.0, 1.0), 3), Timing((3.0, 6.0, 3.0), 3)
    assert fast.spread.disturbed and slow.spread.disturbed
    assert fast.speed_up(slow) == Spread(3.0, 3.0, 3.0)
    assert fast.per_second(10) == Spread.of([10.0, 5.0, 10.0])
    assert fast.speed_up(Timing(error=ValueError())) is None


def test_short_calls_are_repeated_within_a_turn(monkeypatch):
    clock, calls = iter(range(100)), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) / 256)  # 4 ms a call
    assert timed(lambda: calls.append(1), torch.device("cpu"), amount=2)(0) == 1 / 512
    assert len(calls) == 6
