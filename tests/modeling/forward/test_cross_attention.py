"""Decoders that could attend to an encoder: they run as long as none speaks, and refuse as soon as one does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig

from hf_masking import patch_model
from hf_masking.modeling import is_learned

from ..families import build, tokens

MASK = "window:4|sinks:1"
STATES = {"encoder_hidden_states": torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))}


def decoder(family, **changes):
    if family == "gpt2":
        return build("gpt2", add_cross_attention=True, **changes)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=128, initializer_range=0.3, is_decoder=True, add_cross_attention=True, **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    "arguments", [{}, {"use_cache": False}, {"encoder_attention_mask": torch.ones(2, 7, dtype=torch.long)}], ids=list
)
@pytest.mark.parametrize("length", [5, 7, 9])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_states_of_an_encoder_are_refused(family, length, arguments):
    model = patch_model(decoder(family), MASK)
    for part in (model, model.base_model):
        with pytest.raises(ValueError, match=r"was given encoder_hidden_states; .*leave them out, or unpatch_model"):
            part(tokens(2, length), **STATES, **arguments)
    with pytest.raises(ValueError, match="was given encoder_hidden_states"):
        model.generate(tokens(2, length), max_new_tokens=2, **STATES)


def test_states_that_only_an_inner_model_is_given_are_refused():
    model = patch_model(decoder("gpt2"), MASK)
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | STATES), with_kwargs=True, prepend=True
    )
    with pytest.raises(ValueError, match="GPT2Model was given encoder_hidden_states"):
        model(tokens(2, 7))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_cross_attention_that_runs_all_the_same_is_refused(family):
    """Whatever way the states take: their attention has no mask."""
    model = patch_model(decoder(family), MASK)
    base, hidden = model.base_model, torch.zeros(2, 7, 24)
    block = base.h[0] if family == "gpt2" else base.encoder.layer[0]
    own = block.attn if family == "gpt2" else block.attention
    own.register_forward_pre_hook(lambda *_: block.crossattention(hidden, encoder_hidden_states=hidden) and None)
    with pytest.raises(ValueError, match="is a cross-attention, for which masks are not defined"):
        model(tokens(2, 7))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@torch.no_grad()
def test_without_an_encoder_the_decoder_works(family):
    model = patch_model(decoder(family), MASK)
    settings = {"max_new_tokens": 90, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(tokens(2, 9), return_dict_in_generate=True, **settings)
    assert torch.equal(cached.sequences, model.generate(tokens(2, 9), use_cache=False, **settings))
    held = getattr(cached.past_key_values, "self_attention_cache", cached.past_key_values)
    assert all(len(layer.columns) < 75 for layer in held.layers)
    step = model(tokens(2, 1), past_key_values=cached.past_key_values)  # another turn on the same cache
    whole = torch.cat([cached.sequences[:, :-1], tokens(2, 1)], 1)
    torch.testing.assert_close(step.logits[:, 0], model(whole, use_cache=False).logits[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_cross_attention_learns_no_mask(family):
    model = patch_model(decoder(family), "adaptive_span:max=20|sinks:1", check=False)
    learned = [name for name, _ in model.named_parameters() if is_learned(name)]
    assert len(learned) == 2 and not any("cross" in name for name in learned)
