"""A patched model adopts caches, or refuses them."""

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
    QuantizedCache,
    StaticCache,
)

from hf_masking.modeling import patch_model, patched, unpatch_model

from ..families import CONFIGS, build, tokens
from .test_decoding import LENGTH, decode


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_given_cache_is_adopted(family):
    model = patch_model(build(family), "window:9|sinks:1", replace_model_window=True, check=False)
    inputs, ones = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    whole = model(inputs, use_cache=False).logits
    in_pieces = decode(model, inputs, ones, [12] + [1] * 9, with_mask=False, cache=DynamicCache(config=model.config))
    torch.testing.assert_close(in_pieces, whole, rtol=0, atol=1e-4)


def filled(model, length=90):
    return model(tokens(1, length), use_cache=True).past_key_values


@torch.no_grad()
def test_caches_that_cannot_be_exact_are_refused(monkeypatch):
    stock = build("mistral")
    kept_by_config = DynamicCache(config=stock.config)
    stock(tokens(1, 9), past_key_values=kept_by_config)
    model = patch_model(stock, "window:9|sinks:1", replace_model_window=True, check=False)
    with pytest.raises(ValueError, match="this cache holds 9 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=kept_by_config)

    model = patch_model(build("llama"), "window:4", check=False)
    given = filled(model)
    model(tokens(1, 1), past_key_values=given)
    patch_model(model, "window:8", check=False)
    with pytest.raises(
        ValueError, match="this cache was filled under 'window:4', and the layer's mask is 'window:8' now"
    ):
        model(tokens(1, 1), past_key_values=given)

    quantized = QuantizedCache.__new__(QuantizedCache)
    quantized.layers = []
    with pytest.raises(ValueError, match="a quantized cache changes the keys"):
        model(tokens(1, 3), past_key_values=quantized)
    with pytest.raises(ValueError, match="not supported"):
        model.generate_batch([[3, 4, 5]])


@torch.no_grad()
def test_a_mask_that_is_forgotten_in_a_later_call_is_noticed():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    attention_mask = torch.ones(2, 90, dtype=torch.long)
    attention_mask[0, :8] = 0
    given = model(tokens(2, 90), attention_mask=attention_mask).past_key_values
    longer = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    model(tokens(2, 1), attention_mask=longer, past_key_values=given)
    with pytest.raises(ValueError, match="attention_mask differs from the previous call on tokens that are already"):
        model(tokens(2, 1), past_key_values=given)


@torch.no_grad()
def test_a_cache_that_is_half_updated_or_left_behind_is_refused():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    held = filled(model)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens(1, 1), past_key_values=held)
    hook.remove()
    with pytest.raises(ValueError, match="a call that failed has left this cache half updated"):
        model(tokens(1, 1), past_key_values=held)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("length", [30, 90])
def test_a_cache_is_of_a_model_with_its_mask_or_without(family, length):
    """A short one has dropped nothing, but it was read under the mask all the same."""
    model = patch_model(build(family), "window:4|sinks:1", check=False)
    held = filled(model, length)
    with patched(model, "window:3", check=False), pytest.raises(ValueError, match="start with an empty cache"):
        model(tokens(1, 1), past_key_values=copy.deepcopy(held))
    model(tokens(1, 1), past_key_values=held)
    unpatch_model(model)
    for new in (1, 3):
        with pytest.raises(
            ValueError, match=rf"this cache holds {length + 1} tokens read under .*is not patched; start"
        ):
            model(tokens(1, new), past_key_values=held)

    held.reset()
    dense = model(tokens(1, 9)).logits
    torch.testing.assert_close(model(tokens(1, 9), past_key_values=held).logits, dense)
    model(tokens(1, 1), past_key_values=held)
    patch_model(model, "window:4|sinks:1", check=False)
    with pytest.raises(ValueError, match="this cache holds 10 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=held)


@torch.no_grad()
def test_a_static_cache_of_an_unpatched_model_is_refused():
    model = build("llama")
    held = StaticCache(config=model.config, max_cache_len=40)
    model(tokens(1, 9), past_key_values=held)
    patch_model(model, "window:4|sinks:1", check=False)
    with pytest.raises(ValueError, match="this cache holds 9 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=held)
    held.reset()
    whole = model(tokens(1, 12)).logits
    pieces = [model(piece, past_key_values=held).logits for piece in tokens(1, 12).split([8, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_unpatched_model_inside_a_patched_forward_has_a_cache_of_its_own():
    student, teacher = patch_model(build("llama"), "window:4", check=False), patch_model(build("qwen3"), "window:4")
    held = filled(teacher, 30)
    unpatch_model(teacher)
    student.model.layers[1].register_forward_pre_hook(lambda *_: teacher(tokens(1, 1), past_key_values=held) and None)
    with pytest.raises(ValueError, match="this cache holds 30 tokens read under 'window:4'"):
        student(tokens(1, 30), use_cache=False)


def test_another_backend_goes_on_with_a_cache():
    """It computes the same mask; one that needs neighbouring keys is refused where keys have been evicted."""
    model, text = patch_model(build("llama"), "window:4|sinks:1", check=False), tokens(1, 140)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(text, use_cache=False).logits[:, -1]
        model(text[:, :110], past_key_values=cache)
        patch_model(model, "window:4|sinks:1", backend="reference", check=False)
        for column in range(110, 140):
            last = model(text[:, column : column + 1], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(last, whole)
        patch_model(model, "window:4|sinks:1", backend="blockwise", check=False)
        with pytest.raises(ValueError, match="this cache has evicted keys, and backend 'blockwise' computes neighbour"):
            model(text[:, :1], past_key_values=cache)
