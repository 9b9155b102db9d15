"""A new weighting and a new selection from outside of the package: one class each, one call of `register_mask`."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from hf_masking import (
    Features,
    LayerShape,
    Selection,
    Weighting,
    from_pretrained,
    mask_penalties,
    parse_mask,
    patch_model,
    register_mask,
    spec,
)
from hf_masking.modeling import check_generation, check_model, is_learned

from ..modeling.families import build, tokens


@dataclass(frozen=True)
class KeyGate(Weighting):
    """``f(i, j) = sigmoid(w . h_j + open)``: each token decides how much later tokens see of it."""

    open: int = 2

    name: ClassVar[str] = "key_gate"

    def module(self, shape: LayerShape) -> nn.Module:
        return _KeyGate(self.open, shape)

    def log_weight(self, query, key, distance, hard):
        return (query + logsigmoid(key).mT).masked_fill(distance == 0, 0.0)


class _KeyGate(nn.Module):
    def __init__(self, start: int, shape: LayerShape) -> None:
        super().__init__()
        self.start, self.heads = start, shape.query_heads
        self.weight = nn.Parameter(torch.randn(shape.key_heads, shape.hidden_size))

    def forward(self, hidden):
        key = torch.einsum("bnc,gc->bgn", hidden, self.weight) + self.start
        return Features(key.new_zeros(1, self.heads, 1, 1), key[..., None], hard=not self.training)

    def penalty(self, hidden, features):
        return features.key.sigmoid().mean()


@dataclass(frozen=True)
class Loudest(Selection):
    """The k completed blocks whose keys are longest, the same ones for every query."""

    k: int

    name: ClassVar[str] = "loudest"

    def summarize(self, keys):
        complete = keys.shape[-2] // self.block
        norms = keys[..., : complete * self.block, :].norm(dim=-1, keepdim=True)
        return norms.unflatten(-2, (complete, self.block)).mean(-2)

    @torch.no_grad()
    def choose(self, queries, summaries, positions):
        count = self.completed(summaries, positions)
        scores = summaries[..., None, :count, 0].expand(*queries.shape[:-3], queries.shape[-2], count)
        return self.best(scores.clone(), positions, min(self.k, max(1, summaries.shape[-2])))


SPECS = ["key_gate|sinks:1", "loudest:block=4,k=2|window:3", "(key_gate:open=1&loudest:block=4,k=2)|sinks:1"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(spec, "MASKS", dict(spec.MASKS))
    register_mask(KeyGate)
    register_mask(Loudest)


def test_they_are_part_of_the_language():
    mask = parse_mask(SPECS[2])
    assert mask.weightings == (KeyGate(1),)
    assert mask.selection == Loudest(4, 2)
    assert parse_mask(str(mask)) == mask
    with pytest.raises(ValueError, match="only one mask may select blocks, got loudest:block=4,k=2 and top_blocks"):
        parse_mask("loudest:block=4,k=2&top_blocks:block=4,k=2")


@pytest.mark.parametrize("text", SPECS)
def test_a_model_trains_under_them(text):
    model = patch_model(build("llama"), text).train()
    ids = tokens(2, 30)
    learned = {name: p for name, p in model.named_parameters() if is_learned(name)}
    assert bool(learned) == ("key_gate" in text)
    before = {name: p.detach().clone() for name, p in learned.items()}
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(5):
        with mask_penalties() as penalties:
            loss = model(ids, labels=ids, use_cache=False).loss
        assert len(penalties) == 2 * bool(learned)
        (loss + 0.1 * sum(penalties)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in learned.items())


@pytest.mark.parametrize("text", SPECS)
def test_they_pass_the_checks_and_decode_with_a_cache(text):
    model = patch_model(build("llama", max_position_embeddings=512), text)
    for report in (check_model(model), check_generation(model, lengths=[3, 41])):
        assert report.passed, f"\n{report}"


@pytest.mark.parametrize("text", SPECS)
def test_they_are_saved_and_restored(text, tmp_path):
    model, ids = patch_model(build("llama"), text), tokens(2, 30)
    model.save_pretrained(tmp_path)
    restored = from_pretrained(tmp_path)
    assert torch.equal(restored(ids).logits, model(ids).logits)
    mine, theirs = ({n: p for n, p in m.named_parameters() if is_learned(n)} for m in (model, restored))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
