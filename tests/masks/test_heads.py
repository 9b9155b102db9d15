"""A mask for each group of heads: its spec, and how it composes."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import MaskSyntaxError, parse_mask, patch_model
from hf_masking.masks import HeadMasks, Mask, Union
from hf_masking.masks.counting import count_pairs
from hf_masking.modeling import effective_mask
from hf_masking.plan import Documents, Lengths, plan_of

from ..modeling.families import build
from .strategies import expressions

lists = st.lists(expressions, min_size=2, max_size=3).map(tuple)


@given(lists)
@settings(max_examples=500)
def test_a_printed_mask_parses_to_the_same_value(masks):
    mask = HeadMasks(masks)
    assert parse_mask(str(mask)) == mask


@given(lists, expressions)
@settings(max_examples=300)
def test_operators_go_inside(masks, other):
    mask = HeadMasks(masks)
    assert (mask | other).heads == tuple(member | other for member in masks)
    assert (other - mask).heads == tuple(other - member for member in masks)
    assert (mask & mask).heads == tuple(member & member for member in masks)


def test_the_union_is_a_mask():
    mask, union = (
        parse_mask("heads[window:3; offsets:5|block_causal:4]"),
        parse_mask("window:3|offsets:5|block_causal:4"),
    )
    assert mask.union == union == union.union
    assert mask.union.lookahead == 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda mask: mask.dense(8),
        lambda mask: mask.allows(torch.arange(8), torch.arange(8)),
        lambda mask: mask.tiles(*torch.arange(4)),
        lambda mask: mask.intervals(torch.arange(8)),
        lambda mask: mask.last_reader(torch.arange(8)),
        lambda mask: mask.lookahead,
        lambda mask: mask.normal_form(),
        lambda mask: count_pairs(mask, 8),
        lambda mask: plan_of(mask, Lengths(0, 8, 0, 8)),
        lambda mask: Documents.single(8, 8).allows(mask),
    ],
)
def test_it_has_no_pairs_of_its_own(ask):
    mask = parse_mask("heads[window:3; causal]")
    for member in (*mask.heads, mask.union):
        ask(member)
    with pytest.raises(AttributeError, match=r"of 'heads\[window:3; causal\]' differ.*mask.heads\[i\].*mask.union"):
        ask(mask)


def test_it_is_no_mask():
    """Nothing can take it for a set of pairs: it shares no question with one, and no union stands for it."""
    mask = parse_mask("heads[window:3; causal]")
    assert not isinstance(mask, Mask)
    questions = {"allows", "dense", "intervals", "last_reader", "lookahead", "tiles"}
    assert questions < set(dir(mask.union)) - set(dir(mask))
    for operand in (mask | mask.union, mask.union & mask, mask - mask.union, mask.unmarked):
        assert isinstance(operand, HeadMasks)
    assert pickle.loads(pickle.dumps(mask)) == copy.deepcopy(mask) == mask
    with pytest.raises(ValueError, match="differs by head; combine it with"):
        Union((mask, mask.union))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("heads[causal]", "expected at least two masks, got 1"),
        ("heads[causal; heads[causal; sinks:1]]", "may not nest"),
        ("heads[causal; sinks:1", "expected ';' or ']', got 'the end'"),
        ("heads", "expected '[' as in 'heads[window:64; causal]'"),
        ("heads[causal; sinks:1]|heads[sinks:1; sinks:2; sinks:3]", "of 2 and 3 masks cannot be combined"),
        ("heds[causal; sinks:1]", "did you mean 'heads'?"),
        ("heads[" * 100, "nest more than 64 deep"),
        (f"heads[sinks:1; {'causal-(' * 63}causal-sinks:1{')' * 63}]", "may nest 64 operators deep, got 65"),
    ],
)
def test_what_is_wrong_is_said(spec, message):
    with pytest.raises(MaskSyntaxError, match=re.escape(message)):
        parse_mask(spec)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_with_it(family):
    model = build(family)
    patch_model(model, "heads[window:3; strided:4]|sinks:1")
    tokens = torch.arange(2, 18)[None]
    (allowed, *_) = effective_mask(model, input_ids=tokens)
    expected = [parse_mask(spec).dense(16) for spec in ("window:3|sinks:1", "strided:4|sinks:1")]
    assert torch.equal(allowed, torch.stack(expected)[None])
    out = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
    logits = model(out[:, :-1]).logits[0, -4:]
    assert torch.equal(logits.argmax(-1), out[0, -4:])


def test_a_number_of_heads_that_does_not_fit_is_refused():
    model = build("llama")
    with pytest.raises(ValueError, match="gives 7 groups of heads, which do not divide"):
        patch_model(model, f"heads[{'; '.join(['causal'] * 7)}]")
