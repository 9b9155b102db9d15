"""The patched model against the stock model with a dense mask built pair by pair, for each family, mask and layout."""

import pytest
import torch

from hf_masking.modeling import patch_model

from .families import CONFIGS, MASKS, build, dense_mask, own_windows, tokens

LENGTH = 23
PAD = -1

# The document of each column, row by row; PAD for none.
LAYOUTS = {
    "unpadded": [[0] * LENGTH] * 2,
    "left padding": [[PAD] * pads + [0] * (LENGTH - pads) for pads in (0, 1, 5, 17)],
    "right padding": [[0] * LENGTH, [0] * 14 + [PAD] * 9],
    "a hole": [[0] * 9 + [PAD] * 2 + [0] * 12, [PAD] * 3 + [0] * 4 + [PAD] + [0] * 15],
    "packed": [[0] * 7 + [1] * 5 + [2] * 11, [0] * 20 + [1] * 3],
}


def positions(ids):
    """Position ids that start anew in every document, as a collator or `generate` makes them."""
    rows = []
    for row in ids:
        counts, last = {}, 0
        rows.append([])
        for document in row:
            if document != PAD:
                last = counts[document] = counts.get(document, -1) + 1
            rows[-1].append(last)
    return torch.tensor(rows)


def give_layers_a_dense_mask(model, masks):
    """Hooks that hand each attention its own 4D mask; the stock model knows only one for all."""

    def attention_modules():
        return [module for name, module in model.named_modules() if name.endswith((".attn", ".self_attn"))]

    for module, mask in zip(attention_modules(), masks, strict=True):
        module.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
        )


def dense_forward(family, layer_masks, ids, inputs):
    """The stock model in eager attention, a dense mask a layer: no code of the plugin but `parse_mask`."""
    model = build(family)
    model.set_attn_implementation("eager")
    bias = [
        torch.zeros(()).where(dense_mask(mask, window, ids), torch.finfo(torch.float32).min)
        for mask, window in zip(layer_masks, own_windows(family), strict=True)
    ]
    give_layers_a_dense_mask(model, bias)
    return model, model(input_ids=inputs, position_ids=positions(ids), use_cache=False).logits


def sees_something(layer_masks, family, ids):
    """Rows that are real and see a key in every layer: elsewhere eager attention averages what is masked."""
    seen = torch.tensor(ids) >= 0
    for mask, window in zip(layer_masks, own_windows(family), strict=True):
        seen &= dense_mask(mask, window, ids)[:, 0].any(-1)
    return seen


def assert_same_logits_and_gradients(family, patched, layer_masks, ids, **arguments):
    inputs = tokens(len(ids), LENGTH)
    real = sees_something(layer_masks, family, ids)
    assert torch.equal(real, torch.tensor(ids) >= 0)
    stock, expected = dense_forward(family, layer_masks, ids, inputs)
    logits = patched(input_ids=inputs, position_ids=positions(ids), **arguments).logits
    scale = float(expected[real].detach().std())
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5 * max(1, scale))

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) * real[..., None]
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    for (name, one), other in zip(patched.named_parameters(), stock.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            largest = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-5 * max(1, largest), msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_and_gradients(family, mask, layout):
    ids = LAYOUTS[layout]
    model = patch_model(build(family), mask, check=False)
    padding = torch.tensor(ids) >= 0
    arguments = {} if padding.all() else {"attention_mask": padding.long()}
    assert_same_logits_and_gradients(family, model, [mask, mask], ids, **arguments)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("all_ones", [False, True])
@pytest.mark.parametrize("use_cache", [False, True, None])
@pytest.mark.parametrize("how", ["position_ids", "document_ids"])
@pytest.mark.parametrize("family", CONFIGS)
def test_packing_is_right_however_it_is_said(family, how, use_cache, all_ones, training):
    """Stock Transformers leaks here as soon as there is a cache or an all-ones mask."""
    ids, mask = LAYOUTS["packed"], "window:4|sinks:1"
    model = patch_model(build(family), mask, check=False).train(training)
    arguments = {} if use_cache is None else {"use_cache": use_cache}
    if all_ones:
        arguments["attention_mask"] = torch.ones(len(ids), LENGTH, dtype=torch.long)
    if how == "document_ids":
        arguments["document_ids"] = torch.tensor(ids)
    assert_same_logits_and_gradients(family, model, [mask, mask], ids, **arguments)


@pytest.mark.parametrize("family", CONFIGS)
def test_masks_by_layer(family):
    model = patch_model(build(family), "window:3", layers={-1: "strided:4|sinks:1"}, check=False)
    assert_same_logits_and_gradients(
        family, model, ["window:3", "strided:4|sinks:1"], LAYOUTS["left padding"], **left_padding()
    )


def left_padding():
    return {"attention_mask": (torch.tensor(LAYOUTS["left padding"]) >= 0).long()}


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_the_models_own_window_can_be_replaced(family, monkeypatch):
    monkeypatch.setattr("tests.modeling.test_equals_dense.own_windows", lambda family: [None, None])
    model = patch_model(build(family), "window:9", replace_model_window=True, check=False)
    assert_same_logits_and_gradients(family, model, ["window:9"] * 2, LAYOUTS["unpadded"])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_gradient_checkpointing(family, reentrant):
    model = patch_model(build(family), "window:4|sinks:1", check=False).train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same_logits_and_gradients(family, model, ["window:4|sinks:1"] * 2, LAYOUTS["packed"], use_cache=False)


def test_a_batch_of_the_hidden_states():
    ids = LAYOUTS["unpadded"]
    model = patch_model(build("llama"), "window:4", check=False)
    inputs = tokens(2, LENGTH)
    embedded = model(inputs_embeds=model.get_input_embeddings()(inputs)).logits
    torch.testing.assert_close(embedded, model(inputs).logits)
    _, expected = dense_forward("llama", ["window:4"] * 2, ids, inputs)
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-4)


def test_queries_that_see_nothing_are_zero_and_finite():
    """offsets:2 leaves the first two rows without keys: attention adds nothing, and nothing becomes NaN."""
    model = patch_model(build("llama"), "offsets:2", check=False)
    output = model(tokens(1, 9), output_hidden_states=True, attention_mask=torch.tensor([[0, 0] + [1] * 7]))
    output.logits.sum().backward()
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_attention_dropout_is_on_in_training_only():
    model = build("llama", attention_dropout=0.5)
    patch_model(model, "window:4", check=False)
    inputs = tokens(1, LENGTH)
    assert torch.equal(model(inputs).logits, model(inputs).logits)
    model.train()
    assert not torch.equal(model(inputs).logits, model(inputs).logits)
