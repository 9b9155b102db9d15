"""Cached decoding equals recomputation, whatever the model would keep by itself."""

import pytest
import torch
from transformers import DynamicCache

from hf_masking.modeling import patch_model

from .families import CONFIGS, MASKS, build, tokens

LENGTH = 21
CAUSAL_MASKS = [mask for mask in MASKS if not mask.startswith("block_causal")]


def positions(attention_mask):
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def decode(model, inputs, attention_mask, pieces, with_mask=True, cache=None):
    logits, seen = [], 0
    for piece in inputs.split(pieces, dim=1):
        seen += piece.shape[1]
        arguments = {"attention_mask": attention_mask[:, :seen]} if with_mask else {}
        position_ids = positions(attention_mask)[:, seen - piece.shape[1] : seen]
        output = model(piece, position_ids=position_ids, past_key_values=cache, use_cache=True, **arguments)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("mask", CAUSAL_MASKS)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_decoding_step_by_step(family, mask):
    model = patch_model(build(family), mask, layers={1: "strided:2|sinks:1"}, check=False)
    inputs, attention_mask = tokens(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    attention_mask[1, :5] = 0
    attention_mask[2, 8:10] = 0
    real = attention_mask.bool()
    whole = model(inputs, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False).logits
    in_pieces = decode(model, inputs, attention_mask, [9, 1, 1, 3, 1, 1, 5])
    torch.testing.assert_close(in_pieces[real], whole[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_given_cache_is_adopted(family):
    model = patch_model(build(family), "window:9|sinks:1", replace_model_pattern=True, check=False)
    inputs, ones = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    whole = model(inputs, use_cache=False).logits
    in_pieces = decode(model, inputs, ones, [12] + [1] * 9, with_mask=False, cache=DynamicCache(config=model.config))
    torch.testing.assert_close(in_pieces, whole, rtol=0, atol=1e-4)


def greedy(model, inputs, attention_mask, steps):
    """Recomputation without a cache: the last logits of the whole text, again and again."""
    for _ in range(steps):
        logits = model(
            inputs, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False
        ).logits
        inputs = torch.cat([inputs, logits[:, -1].argmax(-1, keepdim=True)], 1)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    return inputs


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_generate_equals_recomputation(family, options):
    model = patch_model(build(family), "window:4|sinks:2", check=False)
    model.generation_config.eos_token_id = None
    model.generation_config.disable_compile = True
    inputs, attention_mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    attention_mask[1, :4] = 0
    generated = model.generate(inputs, attention_mask=attention_mask, max_new_tokens=12, do_sample=False, **options)
    assert torch.equal(generated, greedy(model, inputs, attention_mask, 12))


@torch.no_grad()
def test_beams():
    model = patch_model(build("llama"), "strided:3|sinks:2", check=False)
    inputs = tokens(2, 9)
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(inputs, **settings), model.generate(inputs, use_cache=False, **settings))


@pytest.mark.parametrize("as_dictionary", [True, False])
@torch.no_grad()
def test_a_packed_cache_asks_for_document_ids(as_dictionary):
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    inputs, ids = tokens(1, 12), torch.tensor([[0] * 5 + [1] * 7])
    position_ids = torch.tensor([[*range(5), *range(7)]])
    whole = model(inputs, position_ids=position_ids, use_cache=False).logits
    cache = model(inputs[:, :10], position_ids=position_ids[:, :10], return_dict=as_dictionary)[1]
    with pytest.raises(ValueError, match=r"packed documents.*pass document_ids of shape \[1, 11\]"):
        model(inputs[:, 10:11], position_ids=position_ids[:, 10:11], past_key_values=cache)
    step = model(inputs[:, 10:], position_ids=position_ids[:, 10:], document_ids=ids, past_key_values=cache)
    torch.testing.assert_close(step.logits, whole[:, 10:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_mask_with_lookahead_refuses_generation(use_cache):
    model = patch_model(build("llama"), "block_causal:4", check=False)
    with pytest.raises(ValueError, match="looks 3 tokens ahead, so a model under it cannot generate"):
        model.generate(tokens(1, 8), max_new_tokens=3, use_cache=use_cache)
    cache = model(tokens(1, 8), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot generate"):
        model(tokens(1, 1), past_key_values=cache)


@pytest.mark.parametrize("new", [1, 4])
def test_a_document_that_starts_behind_cached_tokens_needs_document_ids(new):
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    cache = model(tokens(1, 8), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"start a new document behind cached tokens; pass document_ids of shape"):
        model(tokens(1, new), position_ids=torch.arange(new)[None], past_key_values=cache)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_static_cache_that_drops_needed_keys_is_refused(family):
    model = patch_model(build(family), "window:9|sinks:1", replace_model_pattern=True, check=False)
    settings = {"max_new_tokens": 6, "cache_implementation": "static", "disable_compile": True, "eos_token_id": None}
    with pytest.raises(ValueError, match="a static cache keeps no more than the model's own window"):
        model.generate(tokens(1, 9), **settings)
    patch_model(model, "window:9|sinks:1", check=False)
    attention_mask = torch.ones(1, 9, dtype=torch.long)
    attention_mask[0, 6] = 0
    with pytest.raises(ValueError, match="has a hole inside the window of a static cache"):
        model.generate(tokens(1, 9), attention_mask=attention_mask, **settings)
