"""`check_model` catches what can go wrong between a mask and the logits: each fault planted here turns it red."""

import dataclasses

import pytest
import torch
from transformers import AttentionMaskInterface

from hf_masking import parse_mask
from hf_masking.attention import BACKENDS
from hf_masking.attention.backends import Backend
from hf_masking.masks import SlidingWindow, Strip
from hf_masking.masks.progression import Progression
from hf_masking.modeling import batch, check_model, patch_model
from hf_masking.modeling.forward import arguments, interface, mask_function, mask_slot
from hf_masking.modeling.patching.layer_mask import attach, attached
from hf_masking.plan import Documents, documents

from ..families import CONFIGS, build

FAULTS = {}


def attend_filled(inputs, fill):
    """Dense attention with another score in place of -inf for excluded pairs, and no care for empty rows."""
    key, value = (x.repeat_interleave(inputs.group, 1) for x in (inputs.key, inputs.value))
    scores = inputs.query @ key.mT * inputs.options.scale
    return scores.masked_fill(~inputs.documents.allows(inputs.mask)[:, None], fill).softmax(-1) @ value


def fault(plant):
    FAULTS[plant.__name__] = plant
    return plant


@fault
def window_off_by_one(monkeypatch, model):
    monkeypatch.setattr(SlidingWindow, "strips", lambda self: (Strip(Progression(hi=self.window + 1)),))


@fault
def window_one_short(monkeypatch, model):
    monkeypatch.setattr(SlidingWindow, "strips", lambda self: (Strip(Progression(hi=max(1, self.window - 1))),))


@fault
def mask_function_missing(monkeypatch, model):
    AttentionMaskInterface.register("hf_masking", lambda **kwargs: None)  # the fixture registers the right one again


@fault
def attention_ignores_its_mask(monkeypatch, model):
    monkeypatch.setattr(
        interface,
        "masked_attention",
        lambda q, k, v, mask, **kw: _original_masked_attention(q, k, v, parse_mask("causal"), **kw),
    )


@fault
def attention_sees_the_future(monkeypatch, model):
    honest = Documents.allows

    def allows(self, mask):
        allowed = honest(self, mask)
        return allowed | allowed.mT if allowed.shape[1] == allowed.shape[2] else allowed

    monkeypatch.setattr(Documents, "allows", allows)


@fault
def padding_ignored(monkeypatch, model):
    monkeypatch.setattr(arguments, "_read_padding", lambda attention_mask, rows, seen, new: None)
    monkeypatch.setattr(mask_function, "ids_from_padding", lambda padding: torch.zeros_like(padding, dtype=torch.int))


@fault
def packing_ignored(monkeypatch, model):
    monkeypatch.setattr(arguments, "_read_position_ids", lambda *arguments: None)


@fault
def positions_are_columns(monkeypatch, model):
    monkeypatch.setattr(
        documents,
        "positions_in_documents",
        lambda ids: torch.where(ids < 0, -1, torch.arange(ids.shape[1]).expand_as(ids)).int(),
    )


@fault
def a_hole_starts_a_document(monkeypatch, model):
    monkeypatch.setattr(
        arguments, "ids_from_padding", lambda real: torch.where(real.bool(), (~real.bool()).cumsum(-1), -1)
    )


@fault
def decoded_queries_one_position_late(monkeypatch, model):
    honest = batch.Batch.documents

    def documents(self, columns):
        found = honest(self, columns)
        return dataclasses.replace(found, query_positions=found.query_positions - 1)

    monkeypatch.setattr(batch.Batch, "documents", documents)


@fault
def a_cached_key_is_dropped(monkeypatch, model):
    honest = batch.Batch.documents

    def without_the_first_key(self, columns):
        found = honest(self, columns)
        found.key_ids[:, 2:3] = -2
        return found

    monkeypatch.setattr(batch.Batch, "documents", without_the_first_key)


@fault
def masks_in_the_wrong_layers(monkeypatch, model):
    first, last = (layer.self_attn for layer in model.model.layers)
    one, other = attached(first), attached(last)
    attach(first, other)
    attach(last, one)


@fault
def a_layer_without_our_attention(monkeypatch, model):
    first = model.model.layers[0].self_attn
    first.config = type(first.config).from_dict(first.config.to_dict() | {"attn_implementation": "sdpa"})
    first.register_forward_pre_hook(lambda m, args, kw: (args, kw | {"attention_mask": None}), with_kwargs=True)


@fault
def tokens_mixed_outside_attention(monkeypatch, model):
    model.model.layers[0].mlp.register_forward_hook(lambda m, args, output: output + output.roll(1, 1))


@fault
def rows_of_the_batch_mixed_up(monkeypatch, model):
    honest = mask_slot.encode
    monkeypatch.setattr(mask_slot, "encode", lambda documents: honest(documents).roll(1, -1))


@fault
def empty_rows_average_everything(monkeypatch, model):
    """A large negative number in place of -inf: a row that may see nothing sees everything."""

    def attend(inputs):
        return attend_filled(inputs, -1e9)

    monkeypatch.setitem(BACKENDS, "reference", Backend(attend))


@fault
def not_a_number(monkeypatch, model):
    """Return uniform weights for a row that may see nothing, as a careless softmax does."""

    def attend(inputs):
        return attend_filled(inputs, -torch.inf)

    monkeypatch.setitem(BACKENDS, "reference", Backend(attend))


_original_masked_attention = interface.masked_attention


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    yield patch_model(build("llama").to(request.param), "offsets:1,4", layers={1: "window:3|sinks:2"}, check=False)
    AttentionMaskInterface.register("hf_masking", mask_function.fill_mask_slot)


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_catches(name, model, monkeypatch):
    assert check_model(model).passed
    FAULTS[name](monkeypatch, model)
    try:
        report = check_model(model)
    except ValueError as error:
        assert "without this batch's positions" in str(error) or "must be consecutive" in str(error)
    else:
        assert not report.passed, f"not caught:\n{report}"


@pytest.mark.parametrize("mask", ["prompt|window:2", "window:2|sinks:1|after_prompt", "prefix|prompt|window:2"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_check_catches_a_prompt_of_another_length(family, mask, monkeypatch):
    model = patch_model(build(family), mask, check=False)
    assert check_model(model).passed
    honest = documents._marks
    monkeypatch.setattr(
        documents, "_marks", lambda *arguments: (marks := honest(*arguments))._replace(prompt=marks.prompt + 1)
    )
    assert not check_model(model).passed


@pytest.mark.parametrize("family", CONFIGS)
def test_patching_is_refused_and_undone(family, monkeypatch):
    """The same through `patch_model`: the model is left as it was, and the message has the table."""
    model = build(family)
    packing_ignored(monkeypatch, model)
    with pytest.raises(ValueError, match=r"does not keep its mask(.|\n)*FAILED .*packed documents"):
        patch_model(model, "window:3")
    assert not hasattr(model, "hf_masking_patch")


def test_the_report_reads_as_a_table(model):
    report = check_model(model)
    names = [row.name for row in report.rows]
    assert len(set(names)) == len(names)
    assert str(report).count("\n") == len(report.rows) - 1
    assert all(row.passed and row.difference < 1e-4 for row in report.rows)


def test_the_check_leaves_modes_and_randomness_alone(model):
    model.train()
    model.model.layers[0].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    check_model(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
