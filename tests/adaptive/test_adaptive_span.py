"""Spans that were learned too far come back."""

import torch

from hf_masking import AdaptiveSpan

from .oracle import SHAPE


def test_a_span_that_went_too_far_comes_back():
    module = AdaptiveSpan(100).module(SHAPE)
    with torch.no_grad():
        module.share.copy_(torch.tensor([1.5, -0.5, 0.25, 1.0]))
    spans = module(torch.zeros(1, 1, 12)).query
    assert spans.flatten().tolist() == [100, 0, 25, 100]
    # A descent lowers what has a positive gradient: the first may come back, the second may not go on.
    spans.sum().backward()
    assert module.share.grad.tolist() == [100, 0, 100, 100]
    module.share.grad = None
    (-module(torch.zeros(1, 1, 12)).query.sum()).backward()
    assert module.share.grad.tolist() == [0, -100, -100, -100]


def test_a_dynamic_span_at_its_longest_can_get_shorter():
    module = AdaptiveSpan(100, dynamic=True).module(SHAPE)
    with torch.no_grad():
        module.bias.fill_(0.01)
    module.penalty(None, module(torch.zeros(1, 3, 12))).backward()
    assert bool((module.bias.grad > 0).all())
