"""The likelihood of each candidate against a forward pass for each of them alone."""

import re

import pytest
import torch
from torch import nn

from hf_masking import patch_model
from hf_masking.evaluation import Item
from hf_masking.evaluation.probes.ranking import log_likelihoods

from ...modeling.families import build, tokens

CASES = [
    ("gpt2", None),
    ("llama", "causal"),
    ("llama", "window:4|sinks:1"),
    ("llama", "block_local:4,1"),
    ("llama", "heads[window:3; strided:3]"),
    ("llama", "top_blocks:block=2,k=1"),
    ("llama", "relevance"),
    ("mistral", None),
    ("gemma3", "window:9"),
    ("qwen3", "summary:4,2|window:1"),
]


def model_under(family, mask):
    model = build(family)
    return model if mask is None else patch_model(model, mask, check=False)


@torch.no_grad()
def by_itself(model, read, candidate):
    """The log-probability of the tokens of a candidate after what was read, by one forward over both."""
    whole = torch.tensor([[*read, *candidate]])
    logits = model(input_ids=whole, use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logits[len(read) + place - 1, token]) for place, token in enumerate(candidate))


def expected(model, item):
    return [
        [
            by_itself(model, item.token_ids[: column + 1].tolist(), [token for token in candidate if token >= 0])
            for candidate in candidates
        ]
        for column, candidates in zip(item.asked.tolist(), item.candidates.tolist(), strict=True)
    ]


def check(model, items):
    found = log_likelihoods(model, items)
    assert found.tolist() == [[pytest.approx(row, abs=2e-4) for row in expected(model, item)] for item in items]
    assert found.std(-1).min() > 0.1, "candidates that differ, or nothing has been compared"


def item_of(row, asked, candidates):
    asked = torch.tensor(asked)
    return Item(row, asked, candidates, right=torch.zeros_like(asked), distances=torch.ones_like(asked))


@pytest.mark.parametrize(("family", "mask"), CASES)
def test_candidates_of_one_token(family, mask):
    rows, candidates = tokens(2, 30), tokens(2 * 3, 5, seed=6).view(2, 3, 5, 1)
    # The rows ask in other columns.
    check(
        model_under(family, mask),
        [item_of(rows[0], [4, 9, 29], candidates[0]), item_of(rows[1], [7, 8, 20], candidates[1])],
    )


@pytest.mark.parametrize(("family", "mask"), CASES)
def test_candidates_of_several_tokens(family, mask):
    rows, candidates = tokens(2, 30), tokens(2 * 5, 4, seed=6).view(2, 1, 5, 4)
    candidates[0, 0, 0, 2:] = candidates[1, 0, 3, 1:] = -1
    check(
        model_under(family, mask),
        [item_of(*part, some) for *part, some in zip(rows, [[29]] * 2, candidates, strict=True)],
    )


class WithoutChoice(nn.Module):
    """A model that returns the logits of all columns, whatever is asked for."""

    def __init__(self, model):
        super().__init__()
        self.weight, self.forward_of = nn.Parameter(torch.zeros(1)), [model]

    def forward(self, input_ids, use_cache):
        return self.forward_of[0](input_ids=input_ids, use_cache=use_cache)


def test_a_model_that_keeps_all_logits():
    model = build("llama")
    item = item_of(tokens(1, 30)[0], [4, 9], tokens(2, 5, seed=6)[..., None])
    assert torch.allclose(log_likelihoods(WithoutChoice(model), [item]), log_likelihoods(model, [item]), atol=1e-5)


def test_several_tokens_anywhere_else_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("in the last column of the context, which is 29; got questions in the")
    ):
        item_of(tokens(1, 30)[0], [28], tokens(5, 2)[None])
