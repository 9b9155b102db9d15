"""Adaptive masks in models: what they start as, learn, save, cache, and never see."""

import copy
import itertools
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from hf_masking import (
    check_generation,
    check_model,
    effective_mask,
    effective_weights,
    from_pretrained,
    mask_penalties,
    patch_model,
    patched,
    unpatch_model,
)
from hf_masking.modeling import is_learned, running
from hf_masking.modeling.caching import eviction
from hf_masking.modeling.caching.buffer import ColumnBuffer

from ..attention.problems import LargestTensor
from .families import CONFIGS, build

SPECS = {
    "span": "adaptive_span:max=20,ramp=4|sinks:1",
    "dynamic span": "adaptive_span:max=20,ramp=4,dynamic=true",
    "top blocks": "top_blocks:block=4,k=2",
    "top blocks by mean": "top_blocks:block=3,k=2,score=mean|sinks:1|window:5",
    "top blocks in a window": "top_blocks:block=4,k=2&window:30",
    "relevance": "relevance:rank=3,threshold=0.2",
    "both": "(adaptive_span:max=30,ramp=6&relevance:rank=2,threshold=0.1)|window:2",
    "all": "(top_blocks:block=4,k=3&adaptive_span:max=25&relevance:rank=2)|sinks:1",
    "under a prefix": "prefix|top_blocks:block=4,k=2",
}
UNMARKED = [name for name in SPECS if "prefix" not in name]


def tokens(*shape, seed=0):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def learn(model, seed=0):
    """Random numbers for what has been learned, such that it matters."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("share"):
            parameter.uniform_(0.1, 0.9)
        elif is_learned(name):
            parameter.normal_(0, 0.1 if name.endswith("bias") else 0.3)
    return model


def model_of(family, spec, **changes):
    return learn(patch_model(build(family, **changes), spec, check=False))


@pytest.mark.parametrize("score", ["mean", "minmax"])
@pytest.mark.parametrize("block", [10**6, 2**31 - 1])
def test_blocks_that_are_longer_than_the_text_cost_the_text(block, score):
    with LargestTensor() as largest:
        model = patch_model(build("llama"), f"top_blocks:block={block},k=8,score={score}")
        text = model.generate(tokens(1, 12), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert largest.elements < 100_000
    assert torch.equal(text, patch_model(model, "causal").generate(tokens(1, 12), max_new_tokens=3, eos_token_id=None))


def learns(spec):
    """Return whether a mask has parameters: block selection has none."""
    return "span" in spec or "relevance" in spec


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "spec", ["adaptive_span:max=64", "adaptive_span:max=64,dynamic=true", "top_blocks:block=4,k=16", "relevance"]
)
def test_a_pretrained_model_starts_as_it_was(family, spec):
    stock = build(family)
    batch = {"input_ids": tokens(2, 40)}
    expected = stock(**batch).logits
    model = patch_model(copy.deepcopy(stock), spec)
    difference = (model(**batch).logits - expected).abs().max() / expected.std()
    assert difference < (0.02 if spec == "relevance" else 1e-5)


@pytest.mark.parametrize(
    ("name", "family"), list(zip(SPECS, itertools.cycle(["gpt2", "llama", "gemma3"]), strict=False))
)
def test_every_mode_of_generation_equals_recomputation(family, name, monkeypatch):
    monkeypatch.setattr(eviction, "ROLLBACK", 12)
    model = model_of(family, SPECS[name], max_position_embeddings=512)
    report = check_model(model)
    assert report.passed, f"\n{report}"
    report = check_generation(model, lengths=[3, 41])
    assert report.passed, f"\n{report}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
# Gemma has what the others have: layers with a window of their own, as Mistral, and norms of queries and keys, as Qwen.
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_whole_matrix(family, name):
    model = model_of(family, SPECS[name], max_position_embeddings=512)
    report = check_generation(model)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("name", UNMARKED)
@pytest.mark.parametrize("training", [True, False])
def test_tokens_that_come_later_change_nothing(name, training):
    model = model_of("llama", SPECS[name]).train(training)
    ids = tokens(1, 30)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        for i in range(0, 29, 3):
            changed = torch.cat([ids[:, : i + 1], tokens(1, 29 - i, seed=i + 1)], 1)
            after = model(changed, use_cache=False).logits
            assert torch.allclose(after[:, : i + 1], before[:, : i + 1], atol=1e-5 * float(before.std()))
            assert not torch.allclose(after[:, i + 1 :], before[:, i + 1 :])


@pytest.mark.parametrize("name", UNMARKED)
def test_left_padding_and_packing_are_invisible(name):
    model = model_of("llama", SPECS[name])
    ids = tokens(1, 23)
    alone = model(ids).logits
    padded = torch.cat([torch.zeros(1, 6).long(), ids], 1)
    attention_mask = torch.cat([torch.zeros(1, 6).long(), torch.ones(1, 23).long()], 1)
    positions = torch.cat([torch.zeros(1, 6).long(), torch.arange(23)[None]], 1)
    logits = model(padded, attention_mask=attention_mask, position_ids=positions).logits[:, 6:]
    assert torch.allclose(logits, alone, atol=1e-4)
    other = tokens(1, 11, seed=5)
    positions = torch.cat([torch.arange(11), torch.arange(23)])[None]
    logits = model(torch.cat([other, ids], 1), position_ids=positions).logits[:, 11:]
    assert torch.allclose(logits, alone, atol=1e-4)


@pytest.mark.parametrize("name", UNMARKED)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_learned_is_saved_and_restored(family, name, tmp_path):
    model, ids = model_of(family, SPECS[name]), tokens(2, 30)
    expected = model(ids).logits
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    restored = from_pretrained(tmp_path)
    assert torch.equal(restored(ids).logits, expected)
    mine, theirs = ({n: p for n, p in m.named_parameters() if is_learned(n)} for m in (model, restored))
    assert mine.keys() == theirs.keys()
    assert bool(mine) == learns(SPECS[name])
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(ids).logits, expected)


def test_a_checkpoint_that_lacks_what_was_learned_is_refused(tmp_path):
    model = model_of("llama", "relevance:rank=3")
    model.save_pretrained(
        tmp_path, state_dict={n: p for n, p in model.state_dict().items() if "relevance.key" not in n}
    )
    with pytest.raises(ValueError, match=r"does not hold what its masks have learned: missing .*relevance\.key"):
        from_pretrained(tmp_path)


def test_a_patch_leaves_no_trace_and_keeps_what_is_learned():
    stock = build("llama")
    names, ids = [name for name, _ in stock.named_parameters()], tokens(1, 30)
    expected = stock(ids).logits
    model = learn(patch_model(stock, "adaptive_span:max=20|sinks:1", check=False))
    under_it = model(ids).logits
    assert not torch.allclose(under_it, expected)
    with patched(model, "window:3", check=False):
        assert not [name for name, _ in model.named_parameters() if is_learned(name)]
    assert torch.equal(model(ids).logits, under_it)
    # The same span beside other masks is the same span.
    patch_model(model, "adaptive_span:max=20|sinks:2", check=False)
    patch_model(model, "adaptive_span:max=20|sinks:1", check=False)
    assert torch.equal(model(ids).logits, under_it)
    with pytest.raises(ValueError, match="unknown layer 7"):
        patch_model(model, "window:3", layers={7: "causal"})
    assert torch.equal(model(ids).logits, under_it)
    unpatch_model(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model(ids).logits, expected)


def test_layers_may_differ():
    model = patch_model(build("llama"), "window:4", layers={1: "relevance:rank=2"}, check=True)
    assert {name.split(".")[2] for name, _ in model.named_parameters() if is_learned(name)} == {"1"}


def test_the_effective_mask_is_the_realised_one():
    model, ids = model_of("llama", "top_blocks:block=4,k=1"), tokens(2, 20)
    seen = effective_mask(model, input_ids=ids)
    assert [layer.shape for layer in seen] == [(2, 4, 20, 20)] * 2
    # Heads that share keys choose the same; the own block and one more.
    assert torch.equal(seen[0][:, 0], seen[0][:, 1])
    assert seen[0][:, :, 19].sum(-1).tolist() == [[8] * 4] * 2
    model = model_of("llama", "adaptive_span:max=20,ramp=4")
    share = model.model.layers[0].self_attn.hf_masking.adaptive_span.share
    weights = effective_weights(model, input_ids=ids)[0]
    distance = torch.arange(20)[:, None] - torch.arange(20)
    expected = (1 + (share[:, None, None] * 20 - distance) / 4).clamp(0, 1) * (distance >= 0)
    assert torch.allclose(weights[0], expected, atol=1e-5)


def test_a_cache_keeps_the_longest_span(monkeypatch):
    monkeypatch.setattr(eviction, "ROLLBACK", 4)
    model = patch_model(build("llama"), "adaptive_span:max=40,ramp=4", check=False)
    for layer, share in zip(model.model.layers, (0.1, 0.5), strict=True):
        torch.nn.init.constant_(layer.self_attn.hf_masking.adaptive_span.share, share)
    kept = DynamicCache(config=model.config)
    model.generate(tokens(1, 60), past_key_values=kept, max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert [len(layer.columns) < 20 for layer in kept.layers] == [True, False]
    assert len(kept.layers[1].columns) < 40


@pytest.mark.parametrize("name", SPECS)
def test_gradients_with_checkpointing_are_those_without(name):
    model = model_of("llama", SPECS[name]).train()
    marked = {"prefix_lengths": [4, 9]} if "prefix" in name else {}
    ids, grads = tokens(2, 24), []
    labels = ids.clone()
    labels[:, :10] = -100
    for checkpointed in (False, True):
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        with mask_penalties() as penalties:
            loss = model(ids, labels=labels, use_cache=False, **marked).loss
        (loss + sum(penalties)).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-6) for n in grads[0])
    learned_names = [n for n, _ in model.named_parameters() if is_learned(n)]
    assert bool(learned_names) == learns(SPECS[name])
    assert all(n in grads[0] for n in learned_names)


def test_penalties_are_collected_where_one_asks():
    model, ids = model_of("llama", "adaptive_span:max=20&relevance:rank=2").train(), tokens(1, 24)
    with mask_penalties() as penalties:
        model(ids)
    assert len(penalties) == 4
    assert all(0 < float(penalty.detach()) < 1 for penalty in penalties)
    share = model.model.layers[0].self_attn.hf_masking.adaptive_span.share
    assert float(penalties[0].detach()) == pytest.approx(float(share.detach().mean()))
    model(ids)
    assert len(penalties) == 4
    with mask_penalties() as penalties, torch.no_grad():
        model(ids)
    assert not penalties


def test_a_cache_that_cannot_keep_what_is_read_is_refused():
    model = model_of("llama", "relevance:rank=2")
    with pytest.raises(ValueError, match="needs features of every key, and this cache stores keys and values only"):
        model.generate(tokens(1, 9), max_new_tokens=3, cache_implementation="static")


def test_a_choice_among_keys_that_are_gone_is_refused():
    model = model_of("gemma3", "top_blocks:block=4,k=2")
    with pytest.raises(ValueError, match="scores all blocks of a document, and the keys before position"):
        model.generate(tokens(1, 30), max_new_tokens=8, cache_implementation="static")


def test_nothing_is_left_behind_by_a_call_that_fails(monkeypatch):
    model = model_of("llama", "relevance:rank=2")
    with monkeypatch.context() as broken:
        broken.setattr("hf_masking.modeling.forward.interface.masked_attention", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens(1, 9))
    assert running.current() is None


def test_a_plain_load_says_that_something_is_missing(tmp_path):
    model = model_of("llama", "adaptive_span:max=20")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r"hf_masking\.from_pretrained"):
        patch_model(loaded)


def a_choice_by_what_comes_later(monkeypatch):
    from hf_masking.adaptive import TopBlocks

    honest = TopBlocks.choose
    pooled = lambda self, q, s, p: honest(self, q.mean(-2, keepdim=True).expand_as(q), s, p)  # noqa: E731
    monkeypatch.setattr(TopBlocks, "choose", pooled)


def blocks_counted_in_columns(monkeypatch):
    from hf_masking.adaptive import TopBlocks

    honest = TopBlocks.choose
    monkeypatch.setattr(TopBlocks, "choose", lambda self, q, s, p: honest(self, q, s, p + 1))


def features_of_keys_not_reordered(monkeypatch):
    honest = ColumnBuffer.select

    def select(self, rows):
        features = self._tensors.get("features")
        honest(self, rows)
        if features is not None:
            self._tensors["features"] = features

    monkeypatch.setattr(ColumnBuffer, "select", select)


def a_span_that_the_cache_thinks_shorter(monkeypatch):
    from hf_masking.adaptive import AdaptiveSpan
    from hf_masking.masks import SlidingWindow

    monkeypatch.setattr(AdaptiveSpan, "reads", lambda self, features: SlidingWindow(4))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("top blocks", a_choice_by_what_comes_later),
        ("top blocks", blocks_counted_in_columns),
        ("relevance", features_of_keys_not_reordered),
        ("span", a_span_that_the_cache_thinks_shorter),
    ],
)
def test_planted_faults_turn_a_row_red(name, fault, monkeypatch):
    monkeypatch.setattr(eviction, "ROLLBACK", 12)
    model = model_of("llama", SPECS[name], max_position_embeddings=512)
    fault(monkeypatch)
    assert not (check_model(model).passed and check_generation(model, lengths=[9, 41]).passed)
