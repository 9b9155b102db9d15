"""Classes without a language-model head pass the same checks, which read their hidden states."""

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, GPT2DoubleHeadsModel

from hf_masking.errors import UnsupportedModelError
from hf_masking.modeling import check_model, patch_model, unpatch_model

from ..families import CONFIGS, build, tokens
from .test_model import packing_ignored, tokens_mixed_outside_attention, window_off_by_one

MASK = "window:3|sinks:1"
_HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [
    (family, getattr(transformers, prefix + head))
    for family, prefix in {
        "gpt2": "GPT2",
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen3": "Qwen3",
        "gemma3": "Gemma3Text",
    }.items()
    for head in _HEADS
    if hasattr(transformers, prefix + head)
] + [("gpt2", GPT2DoubleHeadsModel)]


def make(family, kind, **changes):
    torch.manual_seed(0)
    config = CONFIGS[family].__class__.from_dict(CONFIGS[family].to_dict() | changes)
    return kind(config).eval()


def outputs(model, **batch):
    """Everything that a model computes of a padded batch, whatever it is called."""
    padding = torch.ones(2, 12, dtype=torch.long)
    padding[1, :4] = 0  # on the left: heads for sequences read the last token
    with torch.no_grad():
        found = model(input_ids=tokens(2, 12), attention_mask=padding, use_cache=False, **batch)
    return {
        name: value[padding.bool()] if value.shape[:2] == padding.shape else value
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize(("family", "kind"), CLASSES)
def test_every_class_passes_the_checks_and_equals_dense(family, kind):
    expected, model = outputs(make(family, kind)), patch_model(make(family, kind), "causal")
    for name, value in outputs(model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)
    patch_model(model, MASK)
    assert any(not torch.allclose(value, expected[name], atol=1e-2) for name, value in outputs(model).items())
    for name, value in outputs(unpatch_model(model)).items():
        assert torch.equal(value, expected[name])


def test_a_class_that_takes_no_batch_without_a_padding_token():
    model = make("llama", transformers.LlamaForSequenceClassification, pad_token_id=None)
    with pytest.raises(ValueError, match="no padding token"):
        model(input_ids=tokens(2, 5))
    patch_model(model, MASK)


@pytest.mark.parametrize("fault", [window_off_by_one, packing_ignored, tokens_mixed_outside_attention])
@pytest.mark.parametrize("head", _HEADS)
def test_a_planted_fault_is_caught_and_undone(monkeypatch, head, fault):
    kind = getattr(transformers, "Llama" + head)
    model = make("llama", kind)
    if fault is tokens_mixed_outside_attention:
        model.base_model.layers[0].mlp.register_forward_hook(lambda m, args, output: output + output.roll(1, 1))
    else:
        fault(monkeypatch, model)
    before = outputs(model)
    with pytest.raises(UnsupportedModelError, match=f"{kind.__name__} does not keep its mask"):
        patch_model(model, MASK)
    assert not any("hf_masking_patch" in vars(module) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in outputs(model).items())


def test_a_fault_in_decoding_is_caught():
    model = patch_model(make("qwen3", AutoModelForSequenceClassification.from_config), MASK)
    assert check_model(model).passed
    model.base_model.layers[1].self_attn.register_forward_pre_hook(forget_the_past, with_kwargs=True)
    report = check_model(model)
    assert [row.name for row in report.rows if not row.passed] == [
        "cached decoding = recomputation, its own masks",
        "cached decoding = recomputation, 'strided:3|sinks:1'",
    ], f"\n{report}"


def forget_the_past(module, args, kwargs):
    """A decoded token adds to its hidden state what depends on the number of tokens in its call."""
    hidden = kwargs["hidden_states"]
    return args, kwargs | {"hidden_states": hidden * (1 + 0.1 * (hidden.shape[1] < 5))}


def test_an_encoder_is_refused():
    model = transformers.BertModel(transformers.BertConfig(**{**CONFIGS["gpt2"].to_dict(), "model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match=r"BertModel returns no cache .* as encoders do"):
        patch_model(model, MASK)


def test_language_models_are_read_by_their_logits():
    """The head belongs to what is checked: one that mixes tokens is caught."""
    model = build("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output + output.roll(1, 1))
    with pytest.raises(UnsupportedModelError, match="nothing but attention mixes tokens"):
        patch_model(model, MASK)
