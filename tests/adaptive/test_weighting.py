"""Weightings start as full attention, and a penalty closes them."""

import pytest
import torch

from hf_masking import AdaptiveSpan, Relevance

from .oracle import SHAPE


@pytest.mark.parametrize(
    ("mask", "lowest"), [(AdaptiveSpan(50), 1.0), (AdaptiveSpan(50, dynamic=True), 1.0), (Relevance(3), 0.999)]
)
def test_what_learns_starts_as_full_attention(mask, lowest):
    module, hidden = mask.module(SHAPE).eval(), torch.randn(2, 40, 12) * 5
    features = module(hidden)
    key = None if features.key is None else features.key.repeat_interleave(2, 1)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    weights = mask.log_weight(features.query, key, distance, hard=True).exp().expand(2, 4, 40, 40).detach()
    assert lowest <= float(weights.min()) <= float(weights.max()) <= 1


@pytest.mark.parametrize("mask", [AdaptiveSpan(50), AdaptiveSpan(50, dynamic=True), Relevance(3)])
def test_a_penalty_makes_the_mask_let_less_through(mask):
    torch.manual_seed(0)
    module, hidden = mask.module(SHAPE), torch.randn(1, 64, 12)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    first = last = float(module.penalty(hidden, module(hidden)).detach())
    for _ in range(200):
        penalty = module.penalty(hidden, module(hidden))
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        last = float(penalty.detach())
    assert first > 0.99
    assert last < 0.1
