"""Tolerances of the checks: in half precision the error of the model without its mask, in float32 a constant."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, PegasusConfig

from hf_masking.modeling import check_model, patch_model
from hf_masking.modeling.checking import rounding
from hf_masking.modeling.checking.rounding import Rounding

from ..families import build
from .test_classes import make
from .test_model import a_cached_key_is_dropped

MASK = "window:3|sinks:1"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["strided:4|window:4", "log_sparse", "top_blocks:block=4,k=2", "relevance"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_half_precision_passes(family, mask, dtype):
    patch_model(build(family).to(dtype), mask)


def rounds_while_decoding(model, by=0.08):
    """One token that comes alone is computed otherwise than among others, with a mask or without: as deep models do."""
    model.base_model.layers[1].mlp.register_forward_hook(
        lambda module, args, output: output * (1 + by * (output.shape[1] == 1))
    )
    return model


@pytest.mark.parametrize("kind", ["language model", "hidden states"])
def test_what_the_model_itself_shows_is_forgiven_in_half_precision_only(kind):
    def noisy():
        headless = make("llama", AutoModel.from_config)
        return rounds_while_decoding(build("llama") if kind == "language model" else headless)

    model = patch_model(noisy().bfloat16(), MASK)
    worst = max(row.difference for row in check_model(model).rows if row.name.startswith("cached"))
    assert worst > rounding.TOLERANCES[torch.bfloat16]
    with pytest.raises(ValueError, match=r"FAILED .* cached decoding = recomputation"):
        patch_model(noisy(), MASK)


def test_a_fault_beyond_what_the_model_itself_shows_is_caught(monkeypatch):
    model = patch_model(rounds_while_decoding(build("llama")).bfloat16(), MASK)
    a_cached_key_is_dropped(monkeypatch, model)
    assert not check_model(model).passed


def test_a_model_that_disagrees_with_itself_is_not_forgiven():
    """Not even in half precision: under such a tolerance another text would pass."""
    model = rounds_while_decoding(build("llama"), by=30).bfloat16()
    with pytest.raises(ValueError, match=r"FAILED .* cached decoding = recomputation"):
        patch_model(model, MASK)


def test_forgiveness_follows_from_what_the_model_shows(monkeypatch):
    model = patch_model(build("llama"), MASK, check=False)
    monkeypatch.setattr(Rounding, "unpatched", 0.05)
    half, single = (Rounding(model, dtype, []) for dtype in (torch.bfloat16, torch.float32))
    for difference, of_half, of_single in (
        (5e-5, True, True),
        (0.09, True, False),
        (0.19, True, False),
        (0.21, False, False),
        (float("inf"), False, False),
    ):
        differences = torch.tensor([[0.0, 0.0, 0.0, difference]])
        assert (half.forgives(differences), single.forgives(differences)) == (of_half, of_single)


def test_a_few_tokens_may_read_another_block_in_half_precision(monkeypatch):
    monkeypatch.setattr(Rounding, "unpatched", 0.05)
    few, most = torch.tensor([0.01, 0.01, 3.0]), torch.tensor([0.01, 3.0, 3.0])
    choosing = patch_model(build("llama"), "top_blocks:block=4,k=2", check=False)
    assert Rounding(choosing, torch.bfloat16, []).forgives(few)
    assert not Rounding(choosing, torch.bfloat16, []).forgives(most)
    assert not Rounding(choosing, torch.bfloat16, []).forgives(torch.tensor([0.01, 0.01, torch.inf]))
    assert not Rounding(choosing, torch.float32, []).forgives(few)
    static = patch_model(build("llama"), MASK, check=False)
    assert not Rounding(static, torch.bfloat16, []).forgives(few)


def test_what_rounding_takes_of_one_token_it_leaves_of_another():
    """Under these small weights one changed token often moves nothing in bfloat16."""
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    torch.manual_seed(0)
    config = PegasusConfig(**sizes, **heads, vocab_size=97, max_position_embeddings=64)
    patch_model(AutoModelForCausalLM.from_config(config).bfloat16(), MASK)
