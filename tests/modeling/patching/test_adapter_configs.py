"""PEFT saves an adapter without its model; the mask goes with it all the same."""

import copy
import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from hf_masking import from_pretrained, patch_model, patched, unpatch_model
from hf_masking.modeling import layer_masks, load

from ..families import build, tokens

peft = pytest.importorskip("peft")

# Of PEFT, which calls what Transformers has renamed, and asks a hub for the base model's config.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config file")

MASK, SPAN = "window:4|sinks:1", "adaptive_span:max=20|sinks:1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a LLaMA."""
    folder = tmp_path_factory.mktemp("base")
    build("llama").save_pretrained(folder)
    return folder


def dense(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def lora(**options):
    # Random adapters: ones that do nothing would hide that they are missing.
    return peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options)


def adapted(base, mask=MASK, **options):
    torch.manual_seed(3)
    return peft.get_peft_model(patch_model(dense(base), mask, check=False), lora(**options)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 17)).logits


def entry(folder):
    return json.loads((folder / "adapter_config.json").read_text()).get("hf_masking")


def saved(model, folder):
    model.save_pretrained(folder)
    return entry(folder)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("patch_first", [False, True])
def test_an_adapter_is_loaded_under_the_mask_that_it_was_saved_with(base, tmp_path, patch_first, forward):
    masks = {"mask": MASK, "layers": {0: "strided:2"}, "check": False}
    if patch_first:
        model = peft.get_peft_model(patch_model(dense(base), **masks), lora())
    else:
        model = patch_model(peft.get_peft_model(dense(base), lora()), **masks)
    expected = logits(model.eval()) if forward else None
    assert saved(model, tmp_path) == {
        "version": 1,
        "mask": MASK,
        "layers": {"0": "strided:2"},
        "replace_model_window": False,
    }
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, peft.PeftModel) and layer_masks(loaded) == layer_masks(model)
    assert torch.equal(logits(loaded), logits(model) if expected is None else expected)
    assert saved(loaded, tmp_path / "again") == entry(tmp_path)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['hf_masking'\]"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_what_is_saved_is_the_mask_of_the_moment(base, tmp_path):
    model = adapted(base)
    patch_model(model, "window:3", check=False)
    assert saved(model, tmp_path)["mask"] == "window:3"
    with patched(model, "causal", check=False):
        assert saved(model, tmp_path)["mask"] == "causal"
    assert saved(model, tmp_path)["mask"] == "window:3"
    unpatch_model(model.base_model.model)
    assert saved(model, tmp_path) is None
    assert type(model.peft_config["default"]) is peft.LoraConfig
    assert vars(model.peft_config["default"]).keys() == vars(lora()).keys()
    patch_model(model, MASK, check=False)
    assert saved(model, tmp_path)["mask"] == MASK


@pytest.mark.parametrize("forward", [False, True])
def test_a_config_for_several_models_carries_the_mask_of_one(base, tmp_path, forward):
    """A notebook makes one LoraConfig and trains a model under each mask with it, and one under none."""
    config = lora()
    masks = [MASK, "window:3", None]
    models = [dense(base) if mask is None else patch_model(dense(base), mask, check=False) for mask in masks]
    models = [peft.get_peft_model(model, config) for model in models]
    for index in (0, 1, 2, 1, 0):
        if forward:
            logits(models[index])
        written = saved(models[index], tmp_path / str(index))
        assert (written or {}).get("mask") == masks[index]
    assert type(config) is peft.LoraConfig and "hf_masking" not in config.to_dict()


@pytest.mark.parametrize("asked", ["a state dict", "a save that fails"])
def test_a_config_is_not_marked_for_others(base, tmp_path, asked, monkeypatch):
    """Trainers ask for a state dict; a disk is full. Then the same LoraConfig is used for a model without a mask."""
    config = lora()
    model = peft.get_peft_model(patch_model(dense(base), MASK, check=False), config)
    if asked == "a state dict":
        model.state_dict()
    else:
        monkeypatch.setattr("peft.peft_model.safe_save_file", full_disk)
        with pytest.raises(OSError, match="full"):
            model.save_pretrained(tmp_path)
        monkeypatch.undo()
        logits(model)
    assert type(config) is peft.LoraConfig and vars(config).keys() == vars(lora()).keys()
    assert saved(peft.get_peft_model(dense(base), config), tmp_path) is None
    assert saved(model, tmp_path)["mask"] == MASK


def full_disk(*_args, **_kwargs):
    raise OSError("the disk is full")


def test_unpatching_takes_back_what_a_save_has_left(base, tmp_path, monkeypatch):
    config = lora()
    model = peft.get_peft_model(patch_model(dense(base), MASK, check=False), config)
    monkeypatch.setattr("peft.peft_model.safe_save_file", full_disk)
    with pytest.raises(OSError, match="full"):
        model.save_pretrained(tmp_path)
    unpatch_model(model)
    assert type(config) is peft.LoraConfig and vars(config).keys() == vars(lora()).keys()


def test_copies_carry_it_too(base, tmp_path):
    model = adapted(base)
    logits(model)
    for number, twin in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        assert saved(twin, tmp_path / str(number))["mask"] == MASK
        unpatch_model(twin)
        assert saved(twin, tmp_path / str(number)) is None
    assert saved(model, tmp_path)["mask"] == MASK
    config = copy.copy(model.peft_config["default"])
    config.r = 3
    assert config.to_dict()["r"] == 3


def test_weights_that_are_gathered_elsewhere(base, tmp_path):
    """DeepSpeed collects the weights itself, and hands them in."""
    model = adapted(base)
    weights = dict(model.named_parameters())
    logits(model)
    model.save_pretrained(tmp_path, state_dict=weights)
    assert entry(tmp_path)["mask"] == MASK


def test_each_of_several_adapters(base, tmp_path):
    model = adapted(base)
    model.add_adapter("other", lora(r=2))
    assert saved(model, tmp_path)["mask"] == entry(tmp_path / "other")["mask"] == MASK
    model.set_adapter("other")
    assert torch.equal(logits(from_pretrained(tmp_path / "other")), logits(model))
    assert torch.equal(logits(from_pretrained(tmp_path, subfolder="other")), logits(model))


def test_an_adapter_that_transformers_adds(base, tmp_path):
    model = patch_model(dense(base), MASK, check=False)
    model.add_adapter(lora())
    assert saved(model, tmp_path)["mask"] == MASK
    assert torch.equal(logits(from_pretrained(tmp_path)), logits(model))


def test_a_checkpoint_of_the_trainer(base, tmp_path):
    model = adapted(base)
    arguments = TrainingArguments(
        tmp_path, max_steps=1, save_steps=1, report_to=[], use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True
    )
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    Trainer(model, arguments, train_dataset=data).train()
    assert torch.equal(logits(from_pretrained(tmp_path / "checkpoint-1")), logits(model.eval()))
    trained = from_pretrained(tmp_path / "checkpoint-1", is_trainable=True)
    assert any(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("merge", [False, True])
def test_what_masks_have_learned(base, tmp_path, merge):
    model = adapted(base, SPAN, modules_to_save=["adaptive_span"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "share" in name:
                parameter.fill_(0.2)
    expected = logits(model)
    if merge:  # into a checkpoint that carries the mask, with an adapter of its own
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        model = peft.get_peft_model(from_pretrained(tmp_path / "merged"), lora(r=2)).eval()
        expected = logits(model)
    assert saved(model, tmp_path / "adapter")["mask"] == SPAN
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "adapter")), expected, rtol=0, atol=1e-5)


def test_what_masks_have_learned_and_peft_does_not_save(base, tmp_path, caplog):
    model = patch_model(peft.get_peft_model(dense(base), lora()), SPAN, check=False)
    with caplog.at_level(logging.WARNING, "hf_masking"):
        model.state_dict()
        assert "without what" not in caplog.text
        model.save_pretrained(tmp_path)
    assert "saved without what adaptive_span has learned" in caplog.text
    with pytest.raises(ValueError, match=r"holds what its masks have learned: missing \['layer 0: adaptive_span"):
        from_pretrained(tmp_path)


def test_a_base_model_with_a_mask_of_its_own(base, tmp_path):
    patch_model(dense(base), "window:9", check=False).save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(from_pretrained(tmp_path / "adapter")), logits(model))
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["hf_masking"]
    file.write_text(json.dumps(config))
    assert [str(mask) for mask in layer_masks(from_pretrained(tmp_path / "adapter"))] == ["window:9"] * 2


def test_a_head_that_the_adapter_brings(tmp_path):
    """Its base model lacks the head, and the adapter alone has it."""
    build("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    options = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    model = peft.get_peft_model(patch_model(model, MASK, check=False), options).eval()
    model.base_model.model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "adapter")
    loaded = from_pretrained(tmp_path / "adapter", auto_class=LlamaForSequenceClassification, num_labels=3, check=False)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # as outside of these tests, where it is no error
@pytest.mark.parametrize(
    ("changes", "dropped", "message"),
    [
        ({}, "layers.1.self_attn.q_proj.lora_A", r"lacks weights, which would be random: .*layers\.1.*lora_A"),
        ({"base_model_name_or_path": None}, None, "names no base model"),
        ({"hf_masking": {"version": 1, "mask": 3}}, None, "entry is wrong in 'mask': expected a spec"),
        ({"hf_masking": None}, None, "carries no mask"),
    ],
)
def test_adapters_that_are_refused(base, tmp_path, changes, dropped, message):
    adapted(base).save_pretrained(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    save_file({name: x for name, x in load_file(weights).items() if dropped is None or dropped not in name}, weights)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "3", "[1]"])
def test_a_damaged_config_is_named(base, tmp_path, text):
    adapted(base).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        load(tmp_path)


def test_an_adapter_without_a_mask_is_loaded_for_the_commands(base, tmp_path):
    model = peft.get_peft_model(dense(base), lora()).eval()
    assert saved(model, tmp_path) is None
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_prompts(base, tmp_path, caplog):
    """PEFT keeps their configs where the model inside does not see them."""
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = patch_model(peft.get_peft_model(dense(base), prompts), MASK, check=False).eval()
    assert saved(model, tmp_path)["mask"] == MASK
    assert torch.equal(logits(from_pretrained(tmp_path, check=False)), logits(model))
    unpatch_model(model.base_model)
    assert saved(model, tmp_path) is None
    with caplog.at_level(logging.WARNING, "hf_masking"):
        saved(peft.get_peft_model(patch_model(dense(base), MASK, check=False), prompts), tmp_path)
    assert "PEFT saves prompts without the mask of the model inside" in caplog.text
