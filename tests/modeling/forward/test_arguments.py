"""Arguments of a forward that are for others than the attention, and texts with an axis more."""

import pytest
import torch
from transformers import GPT2DoubleHeadsModel

from hf_masking import effective_mask, parse_mask, patch_model

from ..families import CONFIGS, build, tokens
from ..test_equals_dense import give_layers_a_dense_mask

MASK = "window:4|sinks:1"


def checkpointed(model):
    enable = getattr(model.train(), "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


def shifted(inputs):
    return torch.nn.functional.pad(inputs[:, 2:], (0, 2), value=-100)  # not what the loss would make of labels


def weighted_loss(logits, labels, vocab_size, position_weight=None, **kwargs):
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")
    return (losses * position_weight).sum()


LOSSES = {
    "shift_labels": lambda inputs: {"shift_labels": shifted(inputs)},
    "num_items_in_batch": lambda inputs: {"num_items_in_batch": torch.tensor(7)},
    "ignore_index": lambda inputs: {"ignore_index": int(inputs[0, 3])},
    "one's own": lambda inputs: {"position_weight": torch.arange(8.0)},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_arguments_of_the_loss_reach_it_and_nothing_else(family, loss, checkpointing):
    inputs, losses = tokens(2, 9), []
    arguments = LOSSES[loss](inputs)
    for model in (build(family), patch_model(build(family), "causal", check=False)):
        model = checkpointed(model) if checkpointing else model
        if loss == "one's own":
            model.loss_function = weighted_loss
        loss_of_model = model(inputs, labels=inputs, use_cache=False, **arguments).loss
        loss_of_model.backward()
        losses.append(loss_of_model.detach())
    torch.testing.assert_close(*losses)
    plain = patch_model(build(family), "causal", check=False)(inputs, labels=inputs, use_cache=False).loss
    assert not torch.isclose(plain, losses[1])


@pytest.mark.parametrize("arguments", [{"prefix_length": [4]}, {"position_bias": torch.ones(5)}])
def test_an_argument_that_nobody_knows_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} to its attention, which hf_masking does not know and does not ig"):
        patch_model(build("llama"), MASK, check=False)(tokens(2, 5), labels=tokens(2, 5), **arguments)


def test_a_call_that_asks_for_bidirectional_attention_is_refused():
    model = patch_model(build("llama"), MASK, check=False)
    assert torch.equal(model(tokens(2, 5), is_causal=True).logits, model(tokens(2, 5)).logits)
    with pytest.raises(ValueError, match="is_causal=False, which asks for bidirectional attention, but the mask"):
        model(tokens(2, 5), is_causal=False)


def double_heads():
    torch.manual_seed(0)
    return GPT2DoubleHeadsModel(CONFIGS["gpt2"]).eval()


@pytest.mark.parametrize("mask", [MASK, "block_causal:4"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_choices_are_rows(mask, padded):
    """GPT-2's double heads read ``[batch, choices, tokens]``: against a dense mask, one row for each choice."""
    inputs, position_ids, real = (
        tokens(6, 9).view(2, 3, 9),
        torch.arange(9)[None],
        torch.ones(2, 3, 9, dtype=torch.long),
    )
    if padded:
        real[0, 1, 6:] = 0
        real[1, 2, 7:] = 0
    seen = torch.stack([patch_mask(mask, row) for row in real.view(6, 9)])[:, None]
    arguments = {"mc_token_ids": real.sum(-1) - 1, "position_ids": position_ids, "use_cache": False}
    stock = double_heads()
    stock.set_attn_implementation("eager")
    give_layers_a_dense_mask(stock, [torch.zeros(()).where(seen, torch.finfo(torch.float32).min)] * 2)
    expected = stock(inputs, **arguments)
    model = patch_model(double_heads(), mask)
    given = arguments | ({"attention_mask": real} if padded else {})
    output = model(inputs, **given)
    torch.testing.assert_close(output.mc_logits, expected.mc_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.logits[real.bool()], expected.logits[real.bool()], rtol=0, atol=1e-4)
    (layer, _) = effective_mask(model, input_ids=inputs, **given)
    assert torch.equal(layer.expand(6, 9, 9)[real.view(6, 9).bool()], seen[:, 0][real.view(6, 9).bool()])


def patch_mask(mask, real):

    return parse_mask(mask).dense(9) & real.bool()[None] & real.bool()[:, None]


@torch.no_grad()
def test_choices_may_be_packed_and_marked():
    model, inputs = patch_model(double_heads(), "prefix|window:3", check=False), tokens(4, 9).view(2, 2, 9)
    marks, documents = torch.full((2, 2, 9), -1), torch.zeros(2, 2, 9, dtype=torch.long)
    marks[0, 0, :4], marks[1, 1, :7], documents[0, 1, 5:] = 0, 0, 1
    apart = model(inputs.view(4, 9), span_ids=marks.view(4, 9), document_ids=documents.view(4, 9)).logits
    together = model(inputs, span_ids=marks, document_ids=documents).logits
    torch.testing.assert_close(together.view(4, 9, -1), apart)
    labels = torch.where(marks < 0, inputs, -100)
    assert model(inputs, span_ids=marks, labels=labels).loss.isfinite()
    with pytest.raises(ValueError, match="labels inside a prefix or a marked span"):
        model(inputs, span_ids=marks, labels=inputs)
