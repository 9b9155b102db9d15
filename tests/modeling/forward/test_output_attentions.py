"""`output_attentions=True` against eager attention under a dense mask: wherever it is asked for, and whatever runs."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config

from hf_masking import effective_weights, patch_model
from hf_masking.modeling.forward import interface

from ..base_model.test_own_window import model_of
from ..families import CONFIGS, build, dense_mask, tokens
from ..test_adaptive import model_of as adaptive_model
from ..test_equals_dense import LAYOUTS, LENGTH, give_layers_a_dense_mask, positions

MASK = "window:4|sinks:1"
WRITE = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}


def eager(stock, windows, mask, ids, inputs):
    """Return the output of the stock model under a dense mask, with its attentions."""
    stock.set_attn_implementation("eager")
    lowest = torch.finfo(torch.float32).min
    give_layers_a_dense_mask(stock, [torch.zeros(()).where(dense_mask(mask, w, ids), lowest) for w in windows])
    return stock(inputs, position_ids=positions(ids), use_cache=False, output_attentions=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", [MASK, "block_causal:4", "strided:3"])
@pytest.mark.parametrize("family", [*CONFIGS, "gpt_oss"])
@torch.no_grad()
def test_probabilities_are_those_of_eager_attention(family, mask, layout):
    ids = LAYOUTS[layout]
    inputs, real = tokens(len(ids), LENGTH), torch.tensor(ids) >= 0
    (model, windows), (stock, _) = model_of(family), model_of(family)
    expected = eager(stock, windows, mask, ids, inputs)
    arguments = {} if real.all() else {"attention_mask": real.long()}
    patch_model(model, mask, check=False)
    output = model(inputs, position_ids=positions(ids), output_attentions=True, **arguments)
    torch.testing.assert_close(output.logits[real], expected.logits[real], rtol=0, atol=1e-4)
    assert len(output.attentions) == len(windows)
    for mine, theirs in zip(output.attentions, expected.attentions, strict=True):
        assert mine.shape == (len(ids), 4, LENGTH, LENGTH)
        torch.testing.assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real], rtol=0, atol=1e-5)
        assert not mine.transpose(1, 2)[~real].any()


@torch.no_grad()
def test_who_may_ask():
    by_argument, silent = patch_model(build("llama"), MASK, check=False), patch_model(build("llama"), MASK, check=False)
    stock = build("llama")
    stock.set_attn_implementation("eager")
    stock.config.output_attentions = True
    by_config = patch_model(stock, MASK, check=False)
    inputs = tokens(2, 9)
    expected = by_argument(inputs, output_attentions=True)
    for output in (by_config(inputs), by_config.model(inputs), by_argument.model(inputs, output_attentions=True)):
        assert all(map(torch.equal, output.attentions, expected.attentions))
    for output in (silent(inputs), by_config(inputs, output_attentions=False)):
        assert output.get("attentions") is None
        torch.testing.assert_close(output.logits, expected.logits)
    as_tuple = by_argument(inputs, output_attentions=True, return_dict=False)
    assert torch.equal(as_tuple[-1][0], expected.attentions[0])


@pytest.mark.parametrize("mask", ["heads[window:3; strided:2|sinks:1]", "heads[causal; offsets:0; window:2; sinks:2]"])
@torch.no_grad()
def test_masks_by_head(mask):
    model, inputs = patch_model(build("llama"), mask, check=False), tokens(2, 11)
    first = model(inputs, output_attentions=True).attentions[0]
    full = patch_model(build("llama"), "causal", check=False)(inputs, output_attentions=True).attentions[0]
    (seen, _) = effective_weights(model, input_ids=inputs)
    expected = full * seen.repeat_interleave(4 // seen.shape[1], dim=1)
    expected = expected / expected.sum(-1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        "adaptive_span:max=8,ramp=4|sinks:1",
        "relevance:rank=3,threshold=0.2",
        "top_blocks:block=3,k=1",
        "prefix|adaptive_span:max=6",
    ],
)
@torch.no_grad()
def test_adaptive_masks_multiply_probabilities(spec):
    """f times the probabilities of full attention, divided by their sum: the definition of a weight."""
    inputs, given = tokens(2, 17), {"prefix_lengths": [4, 7]} if "prefix" in spec else {}
    model = adaptive_model("llama", spec).eval()
    full = patch_model(build("llama"), "causal|prefix:17", check=False)
    first = model(inputs, output_attentions=True, **given).attentions[0]
    unmasked = full(inputs, output_attentions=True).attentions[0]
    (weights, _) = effective_weights(model, input_ids=inputs, **given)
    expected = unmasked * weights
    torch.testing.assert_close(first, expected / expected.sum(-1, keepdim=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [MASK, "heads[window:3; sinks:2|offsets:0]", "adaptive_span:max=9,ramp=3|sinks:1"])
@torch.no_grad()
def test_a_cache_that_evicts_gives_the_columns_of_the_whole_text(mask):
    model = adaptive_model("llama", mask).eval() if "span" in mask else patch_model(build("llama"), mask, check=False)
    inputs, attention_mask = tokens(2, 105), torch.ones(2, 105, dtype=torch.long)
    attention_mask[1, :5] = 0
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(
        inputs, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, output_attentions=True
    )
    cache = DynamicCache()
    for columns in (slice(0, 90), slice(90, 101), slice(101, 102), slice(102, 105)):
        given = {"attention_mask": attention_mask[:, : columns.stop], "position_ids": position_ids[:, columns]}
        step = model(inputs[:, columns], past_key_values=cache, output_attentions=True, **given)
        for mine, expected in zip(step.attentions, whole.attentions, strict=True):
            assert mine.shape == (2, 4, columns.stop - columns.start, columns.stop)
            torch.testing.assert_close(mine, expected[:, :, columns, : columns.stop], rtol=0, atol=1e-5)
    assert len(cache.layers[0].columns) < 90


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@torch.no_grad()
def test_generate_returns_them(options):
    # A static cache of Mistral has as many columns as its window; any other cache has one for each token.
    family = "llama" if "cache_implementation" in options else "mistral"
    model, inputs = patch_model(build(family), MASK, check=False), tokens(2, 9)
    model.generation_config.disable_compile = True
    written = model.generate(inputs, max_new_tokens=80, output_attentions=True, **WRITE, **options)
    whole = model(written.sequences, use_cache=False, output_attentions=True).attentions
    assert len(written.attentions) == 80
    for step, layers in enumerate(written.attentions):
        for mine, expected in zip(layers, whole, strict=True):
            rows = mine[:, :, -1]
            torch.testing.assert_close(rows[..., : 9 + step], expected[:, :, 8 + step, : 9 + step], rtol=0, atol=1e-5)
            assert rows.shape[-1] == 9 + step or (options and not rows[..., 9 + step :].any())


@torch.no_grad()
def test_beams_and_candidates_return_them():
    model, inputs = patch_model(build("llama"), MASK, check=False), tokens(1, 9)
    beams = model.generate(inputs, max_new_tokens=5, num_beams=3, output_attentions=True, **WRITE)
    assert [layers[0].shape for layers in beams.attentions] == [(3, 4, 9, 9), *((3, 4, 1, 9 + i) for i in range(1, 5))]
    looked_up = model.generate(inputs, max_new_tokens=12, prompt_lookup_num_tokens=3, output_attentions=True, **WRITE)
    plain = model.generate(inputs, max_new_tokens=12, output_attentions=True, **WRITE)
    assert torch.equal(looked_up.sequences, plain.sequences)
    for one, other in zip(looked_up.attentions, plain.attentions, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_soft_cap_bends_them():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, head_dim=6,
        num_key_value_heads=2, sliding_window=5, initializer_range=0.6, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=6, pad_token_id=0,
    )  # fmt: skip
    stock, ids = AutoModelForCausalLM.from_config(config).eval(), LAYOUTS["unpadded"]
    state = stock.state_dict()
    expected = eager(stock, [5, None], MASK, ids, tokens(2, LENGTH))
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(state)
    output = patch_model(model, MASK, check=False)(tokens(2, LENGTH), output_attentions=True)
    for mine, theirs in zip(output.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_queries_that_see_nothing_have_none():
    model = patch_model(build("llama"), "offsets:2", check=False)
    (first, _) = model(tokens(1, 7), output_attentions=True).attentions
    assert torch.equal(first.sum(-1), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]).expand(1, 4, 7))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_flow_through_them(reentrant):
    """Attribution methods need this; with gradient checkpointing the recomputation must do the same."""
    model = patch_model(build("llama"), MASK, check=False).train()
    if reentrant is not None:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    output = model(tokens(2, 9), output_attentions=True, use_cache=False)
    if not reentrant:  # its first pass runs without gradients
        for layer in output.attentions:
            layer.retain_grad()
    output.logits.square().sum().backward()
    assert reentrant or all(layer.grad is not None and layer.grad.any() for layer in output.attentions)
    twin = patch_model(build("llama"), MASK, check=False)
    twin(tokens(2, 9), use_cache=False).logits.square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-4 * max(1.0, float(other.grad.abs().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_and_dropout_leave_them_whole(dtype):
    model = patch_model(build("llama", attention_dropout=0.5), MASK, check=False).to(dtype).train()
    for layer in model(tokens(1, LENGTH), output_attentions=True).attentions:
        assert layer.dtype == dtype
        torch.testing.assert_close(layer.float().sum(-1), torch.ones(1, 4, LENGTH), rtol=0, atol=2e-2)


def test_what_they_cost_is_told_once(caplog):
    model = patch_model(build("llama"), MASK, check=False)
    interface.warn_of_dense_attention_once.cache_clear()
    with caplog.at_level(logging.WARNING, "hf_masking"):
        for _ in range(2):
            model(tokens(1, 5), output_attentions=True)
    (told,) = [record.message for record in caplog.records if "quadratic" in record.message]
    assert told.startswith("output_attentions=True: each call that asks for attention probabilities runs dense attent")
