"""Masks as functions for FlexAttention, against their dense form."""

import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from hf_masking import masked_attention, parse_mask

from .strategies import expressions


@given(expressions)
@settings(max_examples=10, deadline=None)
def test_it_allows_what_the_mask_allows(mask):
    assert torch.equal(create_mask(mask.mask_mod(), 1, 1, 21, 19, device="cpu")[0, 0], mask.dense(21, 19))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("spec", ["window:5|sinks:2", "strided:3-prefix:7", "spans:2,9,12,20|causal"])
def test_flex_attention_takes_it(spec):
    mask = parse_mask(spec)
    assert torch.equal(create_mask(mask.mask_mod(), 1, 1, 24, 24, device="cpu")[0, 0], mask.dense(24))
    tensors = [torch.randn(1, 2, 24, 16, dtype=torch.float64) for _ in range(3)]
    blocks = create_block_mask(mask.mask_mod(), 1, 1, 24, 24, device="cpu", BLOCK_SIZE=8)
    expected = masked_attention(*tensors, mask, backend="reference")
    seen = mask.dense(24).any(1)  # FlexAttention leaves a query without keys undefined
    assert torch.allclose(flex_attention(*tensors, block_mask=blocks)[:, :, seen], expected[:, :, seen])


def test_it_takes_index_tensors_that_broadcast():
    mask = parse_mask("prefix:7|spans:9,12,20,24|window:3")
    index = torch.arange(24)
    assert torch.equal(mask.mask_mod()(index, index, index[:, None], index[None]), mask.dense(24))


def test_heads_are_told_apart():
    mask = parse_mask("heads[window:3; strided:4]")
    allowed = create_mask(mask.mask_mod(n_heads=4), 1, 4, 16, 16, device="cpu")[0]
    assert torch.equal(allowed, torch.stack([mask.heads[head // 2].dense(16) for head in range(4)]))
    for wrong in (None, 3):
        with pytest.raises(ValueError, match=f"a multiple of 2, got {wrong}; write mask.mask_mod"):
            mask.mask_mod(wrong)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("prefix|causal", "needs to be told where its tokens are"), ("relevance", "depends on the content")],
)
def test_a_mask_that_depends_on_the_batch_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_mask(spec).mask_mod()
