"""PyTorch's fused kernel, which is tested before it is used."""

import torch

from hf_masking.attention import fused


def test_a_fused_kernel_that_is_missing_or_wrong_is_not_used(monkeypatch):
    query = torch.zeros(1, 1, 8)
    fused._works.cache_clear()
    assert fused.can_do(query, query)
    monkeypatch.setattr(fused, "attend", lambda q, k, v, bias, scale: (q * 0, q[..., :1] * 0))
    fused._works.cache_clear()
    assert not fused.can_do(query, query)

    def missing(*arguments):
        raise AttributeError("no such operator")

    monkeypatch.setattr(fused, "attend", missing)
    fused._works.cache_clear()
    assert not fused.can_do(query, query)
    fused._works.cache_clear()
