"""Unusual models: what runs passes the checks, and what does not is refused in one sentence and left as it was."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from hf_masking.errors import UnsupportedModelError
from hf_masking.modeling import check_model, patch_model
from hf_masking.modeling.forward import interface

from ..families import CONFIGS, build, tokens

MASK = "window:3|sinks:1"
_SHARED = {"vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
_SMALL = _SHARED | {"hidden_size": 32, "intermediate_size": 40, "max_position_embeddings": 128}
_BERT_LIKE = {**_SMALL, "is_decoder": True, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
_LATENT = _SMALL | {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
}


def make(kind, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(1, 9)).logits


@pytest.mark.parametrize("kind", ["roberta", "roberta-prelayernorm", "data2vec-text", "xlm-roberta-xl"])
def test_positions_that_do_not_begin_at_0(kind):
    """RoBERTa-like decoders count from the padding token's id on, and give what looks like padding no position."""
    model = patch_model(make(kind, **_BERT_LIKE), MASK)
    expected = make(kind, **_BERT_LIKE)
    torch.testing.assert_close(logits(patch_model(model, "causal")), logits(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [2, 3, 4, 5])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_tiny_vocabularies(family, vocabulary):
    changes = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    patch_model(build(family, **changes), MASK)


@pytest.mark.parametrize("family", CONFIGS)
def test_resized_to_a_tiny_vocabulary(family):
    """Use models as Transformers' own test suites do."""
    model = build(family)
    model.resize_token_embeddings(4)
    expected = model(input_ids=tokens(1, 9) % 4).logits
    torch.testing.assert_close(
        patch_model(model, "causal")(input_ids=tokens(1, 9) % 4).logits, expected, rtol=0, atol=1e-4
    )


def test_a_vocabulary_of_one_token():
    changes = {"vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    with pytest.raises(UnsupportedModelError, match=r"a vocabulary of 1 .* patch with check=False"):
        patch_model(build("llama", **changes), MASK)


def test_two_calls_of_one_attention():
    """DiffLlama's layers attend twice with the same queries, which is no second step of the way a token reaches."""
    patch_model(make("diffllama", **_SMALL, num_key_value_heads=2), MASK)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("deepseek_v32", _LATENT, r"RuntimeError in modeling_deepseek_v32.py, line \d+ \(.*attention_mask\): The size"),
        ("doge", _SMALL | {"num_key_value_heads": 2}, r"RuntimeError in modeling_doge.py"),
        ("git", _BERT_LIKE, r"RuntimeError in modeling_git.py"),
        ("bert", _SMALL, "returns no cache when use_cache=True asks for one, as encoders do"),
    ],
)
def test_what_a_model_raises_becomes_one_sentence(kind, settings, reason):
    model = make(kind, **settings)
    before = logits(model)
    with pytest.raises(UnsupportedModelError, match=rf"^{type(model).__name__} .*{reason}") as caught:
        patch_model(model, MASK)
    assert "\n" not in str(caught.value)
    assert not any("hf_masking_patch" in vars(module) for module in model.modules())
    assert torch.equal(logits(model), before)


_JAMBA = {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}


@pytest.mark.parametrize(
    ("kind", "settings", "layers"),
    [
        ("mamba", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "0, 1"),
        ("jamba", _SMALL | _JAMBA | {"num_key_value_heads": 2, "use_mamba_kernels": False}, "0"),
        ("lfm2", _SMALL | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "0"),
    ],
)
def test_layers_that_mix_tokens_without_attention(kind, settings, layers):
    model = make(kind, **settings)
    before = logits(model)
    with pytest.raises(UnsupportedModelError, match=rf"FAILED .* asks for its mask \(not layer {layers}\)$"):
        patch_model(model, MASK)
    assert torch.equal(logits(model), before)


def test_running_out_of_memory_is_no_fault_of_the_model(monkeypatch):
    model = build("llama")
    hook = model.model.layers[0].register_forward_pre_hook(run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        patch_model(model, MASK)
    hook.remove()
    assert torch.equal(logits(model), logits(build("llama")))


def run_out_of_memory(module, args):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("family", "name"), [("llama", "lm_head.weight"), ("gpt2", "transformer.h.1.mlp.c_fc.weight")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(family, name, value):
    model = build(family)
    with torch.no_grad():
        model.get_parameter(name)[3, 5] = value
    with pytest.raises(UnsupportedModelError, match=f"^the weights of {type(model).__name__} are not finite: {name}$"):
        patch_model(model, MASK)


def test_a_model_that_overflows_by_itself():
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight.mul_(4e4)
    with pytest.raises(UnsupportedModelError, match=r"in torch\.float16 is not finite, with a mask or without"):
        patch_model(model.half(), MASK)


def test_rows_that_only_the_mask_makes_not_finite_are_named(monkeypatch):
    model = patch_model(build("llama"), MASK, check=False)
    honest = interface.masked_attention

    def fourth_row_lost(query, *args, **kwargs):
        return honest(query, *args, **kwargs).masked_fill(torch.arange(query.shape[2])[:, None] == 4, torch.nan)

    monkeypatch.setattr(interface, "masked_attention", fourth_row_lost)
    report = check_model(model)
    assert not report.passed
    details = {row.detail for row in report.rows if row.detail}
    assert details and all("is not finite" in detail for detail in details)


def test_a_model_whose_attention_changes_nothing_is_patched_with_a_warning(caplog, monkeypatch):
    """Output projections that start at zero, as in training from scratch."""
    model = build("llama")
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    patch_model(model, MASK)
    (said,) = [message for message in caplog.messages if "influences" in message]
    assert said.startswith("no token influences another in LlamaForCausalLM, with its mask or without")
    # The mask alone may not take the influence away.
    model = build("llama")
    patch_model(model, MASK, check=False)
    monkeypatch.setattr(interface, "masked_attention", lambda query, *_, **__: torch.zeros_like(query))
    assert not check_model(model).passed
