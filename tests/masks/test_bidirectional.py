"""Masks that need marks: what they ask for, and what they are where nothing is marked."""

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.masks import AfterPrompt, HeadMasks, Marks, Prefix, Prompt, Spans


@pytest.mark.parametrize(
    ("spec", "needs", "unmarked"),
    [
        ("causal", set(), "causal"),
        ("prefix", {"prefix"}, "prefix:0"),
        ("prefix:3", set(), "prefix:3"),
        ("spans", {"spans"}, "spans:0,0"),
        ("prompt|window:4", {"prompt"}, "prompt:0|window:4"),
        ("prompt:3|after_prompt:5", set(), "prompt:3|after_prompt:5"),
        ("heads[after_prompt; prefix]", {"prompt", "prefix"}, "heads[after_prompt:0; prefix:0]"),
        ("spans:2,5", set(), "spans:2,5"),
        ("prefix|spans|window:4", {"prefix", "spans"}, "prefix:0|spans:0,0|window:4"),
        ("heads[prefix|causal; window:3]", {"prefix"}, "heads[prefix:0|causal; window:3]"),
        ("heads[prefix; causal]&spans", {"prefix", "spans"}, "heads[prefix:0&spans:0,0; causal&spans:0,0]"),
        ("prefix|top_blocks:block=4,k=2", {"prefix"}, "prefix:0|top_blocks:block=4,k=2"),
    ],
)  # fmt: skip
def test_a_mask_knows_the_marks_that_it_needs(spec, needs, unmarked):
    mask = parse_mask(spec)
    assert mask.needs == needs
    assert str(mask.unmarked) == unmarked
    assert parse_mask(unmarked) == mask.unmarked
    assert not mask.unmarked.needs
    assert (mask.unmarked is mask) == (not needs)


def test_a_prefix_is_the_span_from_0():
    marks = Marks(((0, 2), (3, 6)))
    assert Prefix().bind(marks) == Prefix(2)
    assert Prefix().bind(Marks(marks.spans[1:])) == Prefix(0)
    assert Spans().bind(marks) == Spans((0, 2, 3, 6))
    assert HeadMasks((Prefix(), Spans())).bind(marks).heads == (Prefix(2), Spans((0, 2, 3, 6)))


def test_a_prompt_and_a_prefix_are_bound_apart():
    marks = Marks(((0, 2),), prompt=5)
    bound = (Prefix() | Prompt() | AfterPrompt()).bind(marks)
    assert bound == Prefix(2) | Prompt(5) | AfterPrompt(5)
    assert bound.bind(Marks(prompt=9)) is bound
    for mask in (Prompt(), AfterPrompt()):
        with pytest.raises(ValueError, match="needs to be told how many tokens the prompt has: pass prompt_lengths="):
            mask.dense(3)


def test_no_spans_are_not_spans_to_come():
    assert Spans(()) == Spans((4, 4)) == parse_mask("spans:0,0") != Spans()
    assert not Spans(()).dense(5).any()
    assert torch.equal(Spans((1, 1, 2, 4)).dense(5), Spans((2, 4)).dense(5))
    with pytest.raises(ValueError, match="'spans' needs to be told where its tokens are"):
        Spans().dense(5)
