"""PyTorch's dense attention under a mask."""

import pytest
import torch
from hypothesis import given, settings

from hf_masking.attention import masked_attention

from .problems import inputs, problems


@given(problems())
@settings(max_examples=300)
def test_sdpa_equals_the_reference(problem):
    problem.softcap, problem.sinks, problem.dtype = None, False, torch.float64
    inputs = problem.inputs()
    for one, other in zip(problem.outputs(inputs, "sdpa"), problem.outputs(inputs, "reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", [{"softcap": 2.0}, {"sink_logits": torch.zeros(4)}])
def test_sdpa_refuses_what_it_does_not_know(option):
    with pytest.raises(ValueError, match="'sdpa' cannot compute this: it does not support "):
        masked_attention(*inputs(), "window:8", backend="sdpa", **option)
