"""Several models on the same windows, interleaved."""

import weakref

import pytest
import torch

from hf_masking import patch_model, perplexity
from hf_masking.evaluation import WindowedText, side_by_side
from hf_masking.evaluation.timing import Calibration, Spread
from hf_masking.modeling import sharing_weights

from ..modeling.families import build, tokens


@pytest.fixture
def models():
    model = build("llama")
    return [patch_model(sharing_weights(model), mask, check=False) for mask in ("causal", "window:3", "strided:2")]


def watched(models, monkeypatch, fail=None):
    """Record which model scored how many windows; ``fail`` is a model that breaks at its second counted batch."""
    seen, plain = [], WindowedText.losses

    def losses(self, model, batch):
        index = next(i for i, other in enumerate(models) if other is model)
        seen.append((index, len(batch)))
        if index == fail and sum(i == fail for i, _ in seen) == 3:
            raise RuntimeError("no memory left")
        return plain(self, model, batch)

    monkeypatch.setattr(WindowedText, "losses", losses)
    return seen


def test_the_same_as_one_by_one(models):
    ids = tokens(1, 100)[0]
    text = WindowedText(ids, 16, 7, None, 3)
    scored = []
    measured = side_by_side(models, text, text_bytes=300, on_progress=scored.append)
    for model, measurement in zip(models, measured, strict=True):
        assert measurement.result == perplexity(model, ids, context=16, stride=7, batch_size=3, text_bytes=300)
        assert measurement.tokens_per_second.median > 0 and measurement.error is None
    assert sum(scored) == 3 * 99


def test_all_are_warmed_up_then_take_turns_that_rotate(models, monkeypatch):
    seen = watched(models, monkeypatch)
    side_by_side(models, WindowedText(tokens(1, 65)[0], 16, None, None, 1))
    warm_up = (0, 1, 2)
    assert [index for index, _ in seen] == [*warm_up, *(0, 1, 2), *(1, 2, 0), *(2, 0, 1), *(0, 1, 2)]


def test_what_fails_is_left_out_and_the_others_go_on(models, monkeypatch):
    expected = side_by_side(models, WindowedText(tokens(1, 65)[0], 16, None, None, 1))
    seen = watched(models, monkeypatch, fail=1)
    measured = side_by_side(models, WindowedText(tokens(1, 65)[0], 16, None, None, 1))
    assert [measurement.result for measurement in measured] == [expected[0].result, None, expected[2].result]
    assert str(measured[1].error) == "no memory left"
    assert [index for index, _ in seen].count(1) == 3


def test_warming_up_is_not_counted(models, monkeypatch):
    clock = iter([0, 100, *range(200, 1000)])
    monkeypatch.setattr("hf_masking.evaluation.interleaved.matrix_product", lambda device: Calibration(lambda: 1.0))
    monkeypatch.setattr("hf_masking.evaluation.timing.time.perf_counter", lambda: next(clock))
    (measured,) = side_by_side(models[:1], WindowedText(torch.arange(65) % 97, 16, None, None, 1))
    assert measured.tokens_per_second == Spread(16, 16, 16)
    assert measured.result.tokens == 64


def test_what_a_failed_forward_held_is_released(models):
    """Its error is kept for the report, and would keep the tensors in its frames."""
    held, alive = [], []

    def fail(*_):
        big = torch.zeros(1000)
        held.append(weakref.ref(big))
        try:
            raise KeyError("the first error")
        except KeyError:
            raise RuntimeError("out of memory") from None

    models[0].model.layers[1].register_forward_pre_hook(fail)
    models[1].register_forward_pre_hook(lambda *_: alive.extend(reference() is not None for reference in held))
    measured = side_by_side(models[:2], WindowedText(tokens(1, 65)[0], 16, None, None, 1))
    assert str(measured[0].error) == "out of memory" and measured[1].error is None
    assert held and not any(alive)
