"""Remembered results are bounded by bytes, and are the same for every caller."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_masking import parse_mask
from hf_masking.plan import Documents, Lengths, memory, plan_of
from hf_masking.plan.memory import remember


@pytest.fixture
def calls():
    return []


@pytest.fixture
def text_of(calls, monkeypatch):
    monkeypatch.setattr(memory, "_ENTRY_BYTES", 0)

    @remember(10, len)
    def text_of(size, sign="a"):
        calls.append(size)
        return sign * size

    return text_of


def test_a_result_is_worked_out_once(text_of, calls):
    assert text_of(3) is text_of(3)
    assert text_of(3, sign="b") == "bbb" == text_of(3, "b")
    assert calls == [3, 3, 3]
    text_of.cache_clear()
    assert (len(text_of), text_of.nbytes) == (0, 0)
    assert text_of(3) == "aaa"


def test_what_was_used_longest_ago_goes_first(text_of, calls):
    for size in (4, 5, 4, 6):  # 5 goes for 6
        text_of(size)
    assert (len(text_of), text_of.nbytes) == (2, 10)
    text_of(4), text_of(5)
    assert calls == [4, 5, 6, 5]


def test_the_newest_stays_however_large(text_of, calls):
    text_of(2)
    assert text_of(99) is text_of(99)
    assert (len(text_of), text_of.nbytes, calls) == (1, 99, [2, 99])


def test_many_threads(text_of):
    with ThreadPoolExecutor(8) as pool:
        assert all(len(text) == i % 7 for i, text in enumerate(pool.map(text_of, [i % 7 for i in range(2000)])))
    assert text_of.nbytes == sum(nbytes for _, nbytes in text_of._results.values()) <= 10


def test_an_error_is_not_remembered(calls):
    @remember(10, len)
    def fails():
        calls.append(1)
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            fails()
    assert calls == [1, 1]


@pytest.mark.parametrize("spec", ["window:256|sinks:4", "strided:64|window:9", "summary:64,3", "log_sparse", "causal"])
def test_a_plan_knows_its_bytes(spec):
    plan = plan_of(parse_mask(spec), Lengths(0, 20_000, 0, 20_000))
    pickled = len(pickle.dumps([[vars(part) for part in plan.parts]]))
    assert 0.3 * pickled < plan.nbytes + memory._ENTRY_BYTES < 4 * pickled + 2 * memory._ENTRY_BYTES


def test_plans_of_long_texts_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(plan_of, "limit", 2**22)
    for length in range(20_000, 20_100):
        plan_of(parse_mask("window:256|sinks:4"), Lengths(0, length, 0, length))
    assert 1 < len(plan_of) < 20
    assert plan_of.nbytes <= 2**22


def test_arguments_that_stay_as_the_key_are_counted():
    described = Documents.single(8, 8)
    remembered = remember(2**20, len)(lambda documents, name: [name] * 100)
    remembered(described, "one")
    assert remembered.nbytes == 100 + described.nbytes + memory._ENTRY_BYTES
    assert described.nbytes == 4 * 8 * 4
