"""Patching, undoing it, and everything that can happen to a patched model in between."""

import copy
import io
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, BloomConfig

from hf_masking import effective_mask, from_pretrained, parse_mask, patch_model, patched, unpatch_model
from hf_masking.errors import UnsupportedModelError
from hf_masking.modeling import layer_masks

from .families import CONFIGS, build, dense_mask, own_windows, tokens

MASK = "window:4|sinks:1"


def logits(model, length=17):
    with torch.no_grad():
        return model(tokens(2, length)).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_unpatching_leaves_no_trace(family):
    model, twin = build(family), build(family)
    before, state = dict(vars(model)), list(model.state_dict())
    configs = {name: vars(module).get("config") for name, module in model.named_modules()}
    patch_model(model, MASK)
    assert not torch.equal(logits(model), logits(twin))
    assert list(model.state_dict()) == state
    unpatch_model(model)
    assert torch.equal(logits(model), logits(twin))
    assert vars(model).keys() == before.keys()
    assert all(vars(module).get("config") is configs[name] for name, module in model.named_modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="is not patched; there is nothing to undo"):
        unpatch_model(model)


def test_the_context_manager_brings_back_what_was_there():
    model = patch_model(build("llama"), MASK)
    before = logits(model)
    with patched(model, "window:2") as inside:
        assert inside is model
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    stock = build("llama")
    dense = logits(stock)
    with pytest.raises(RuntimeError, match="inside"), patched(stock, "window:2"):
        raise RuntimeError("inside")
    assert torch.equal(logits(stock), dense)


def test_a_new_mask_replaces_the_old_one():
    model = patch_model(patch_model(build("llama"), "window:2"), MASK)
    assert torch.equal(logits(model), logits(patch_model(build("llama"), MASK)))
    assert layer_masks(model) == [parse_mask(MASK)] * 2
    assert torch.equal(logits(unpatch_model(model)), logits(build("llama")))


def test_a_second_model_of_the_same_config_is_untouched():
    config = copy.deepcopy(CONFIGS["llama"])
    student, teacher = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config)
    before = logits(teacher)
    patch_model(student, MASK)
    assert teacher.config._attn_implementation != "hf_masking"
    assert torch.equal(logits(teacher), before)


@pytest.mark.parametrize("family", CONFIGS)
def test_copies_keep_the_mask_and_are_independent(family):
    model = patch_model(build(family), MASK)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    before = logits(model)
    for twin in copies:
        assert torch.equal(logits(twin), before)
        unpatch_model(twin)
        assert torch.equal(logits(twin), logits(build(family)))
    assert torch.equal(logits(model), before)
    unpatch_model(model)
    assert torch.equal(logits(model), logits(build(family)))


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16(family):
    exact, model = patch_model(build(family), MASK), patch_model(build(family).bfloat16(), MASK)
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[1, :5] = 0
    one, other = (m(tokens(2, 17), attention_mask=padding).logits.float() for m in (exact, model))
    real = padding.bool()
    assert torch.isfinite(other).all()
    assert (one - other)[real].std() < 0.1 * one[real].std()


def test_saved_and_loaded_in_a_new_process(tmp_path):
    model = patch_model(build("mistral"), MASK, layers={0: "strided:2"}, replace_model_window=True)
    model.save_pretrained(tmp_path)
    torch.save(logits(model), tmp_path / "expected.pt")
    script = f"""
import torch, transformers
path = {str(tmp_path)!r}
try:
    transformers.AutoModelForCausalLM.from_pretrained(path)
except ValueError as error:
    assert "hf_masking" in str(error), error
else:
    raise SystemExit("loaded without the plugin, and the mask was lost")
import hf_masking
from tests.modeling.families import tokens
expected = torch.load(path + "/expected.pt")
loaded = hf_masking.from_pretrained(path)
assert torch.equal(loaded(tokens(2, 17)).logits, expected)
raw = transformers.AutoModelForCausalLM.from_pretrained(path)
try:
    raw(tokens(2, 17))
except ValueError as error:
    assert "patch_model(model)" in str(error), error
else:
    raise SystemExit("an unpatched model ran")
assert torch.equal(hf_masking.patch_model(raw)(tokens(2, 17)).logits, expected)
dense = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")(tokens(2, 17)).logits
for model in (loaded, raw):
    assert torch.equal(hf_masking.unpatch_model(model)(tokens(2, 17)).logits, dense)
    model.save_pretrained(path + "/plain")
    assert "hf_masking" not in open(path + "/plain/config.json").read()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_from_pretrained_needs_a_mask(tmp_path):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="carries no mask; load it with AutoModelForCausalLM"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the model's config carries no mask; say which"):
        patch_model(build("llama"))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_patch_that_is_undone_from_outside_is_loud(implementation):
    model = patch_model(build("gemma3"), MASK)
    model.set_attn_implementation(implementation)
    with pytest.raises(ValueError, match=f"switched to '{implementation}' after patch_model, which loses the mask"):
        model(tokens(1, 5))
    assert torch.equal(logits(unpatch_model(model)), logits(build("gemma3")))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what Transformers has renamed
def test_lora_before_and_after_patching():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    def lora(model):
        torch.manual_seed(3)
        return peft.get_peft_model(model, settings)

    before, after = patch_model(lora(build("llama")), MASK), lora(patch_model(build("llama"), MASK))
    assert torch.equal(logits(before), logits(after))
    assert not torch.equal(logits(before), logits(lora(build("llama"))))
    merged = after.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(before), rtol=0, atol=1e-4)
    unpatch_model(before)
    assert torch.equal(logits(before), logits(lora(build("llama"))))


@pytest.mark.parametrize("family", CONFIGS)
def test_effective_mask(family):
    model = patch_model(build(family), MASK, layers={1: "strided:2"})
    ids = [[-1] * 4 + [0] * 9, [0] * 13]
    layers = effective_mask(model, input_ids=tokens(2, 13), attention_mask=(torch.tensor(ids) >= 0).long())
    for seen, mask, window in zip(layers, (MASK, "strided:2"), own_windows(family), strict=True):
        assert torch.equal(seen, dense_mask(mask, window, ids)[:, 0])
    with pytest.raises(ValueError, match="is not patched; call patch_model"):
        effective_mask(build(family), input_ids=tokens(1, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "windw:4"}, "did you mean 'window'?"),
        ({"mask": "window:4", "layers": {2: "causal"}}, "unknown layer 2: the model has 2 layers; use 0 to 1"),
        ({"mask": "window:4", "layers": {-3: "causal"}}, "unknown layer -3"),
        ({"mask": "window:4", "layers": {"0": "causal"}}, "unknown layer '0'"),
        ({"mask": "window:4", "layers": {1: "causal", -1: "causal"}}, "layer 1 is given twice"),
        ({"mask": "window:4", "backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_wrong_arguments_leave_the_model_as_it_was(arguments, message):
    model = patch_model(build("llama"), MASK)
    before = logits(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_model(model, **arguments)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "attention_mask",
    [
        torch.zeros(1, 1, 5, 5),
        torch.ones(1, 1, 5, 5, dtype=torch.long),
        torch.ones(1, 1, 5, 5, dtype=torch.bool),
        torch.ones(1, 5, 5),
        {"full_attention": torch.zeros(1, 1, 5, 5)},
    ],
    ids=["float 4D", "integer 4D", "boolean 4D", "3D", "a dictionary"],
)
def test_a_users_own_mask_tensor_is_refused(attention_mask):
    model = patch_model(build("llama"), MASK)
    with pytest.raises(ValueError, match="a patched model takes the 2D padding mask"):
        model(tokens(1, 5), attention_mask=attention_mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"document_ids": torch.zeros(1, 4, dtype=torch.long)}, "document_ids must be integers of shape [2, 5]"),
        ({"document_ids": torch.zeros(2, 5)}, "got torch.float32"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask must cover the 0 cached and 5 new tokens"),
        ({"cu_seq_lens_q": torch.tensor([0, 5])}, "pass document_ids= for packed documents"),
        ({"position_bias": torch.tensor([0, 5])}, "which hf_masking does not know and does not ignore"),
    ],
)
def test_wrong_batches(arguments, message):
    model = patch_model(build("llama"), MASK)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(tokens(2, 5), **arguments)


def test_flattened_documents_are_the_same_under_any_numbers():
    model, starts = patch_model(build("llama"), MASK), torch.tensor([0, 3, 5])
    expected = model(tokens(1, 5), cu_seq_lens_q=starts, cu_seq_lens_k=starts).logits
    for ids in ([5, 5, 5, 3, 3], [0, 0, 0, 7, 7]):
        both = {"document_ids": torch.tensor([ids]), "cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
        assert torch.equal(model(tokens(1, 5), **both).logits, expected)
    for ids in ([5, 5, 3, 3, 3], [0, 0, 0, 0, 0], [0, 1, 0, 2, 2]):
        with pytest.raises(ValueError, match="cu_seq_lens_q begins other documents"):
            model(tokens(1, 5), **both | {"document_ids": torch.tensor([ids])})


class NotAModel(nn.Module):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (NotAModel, "expected a Transformers model (PreTrainedModel), got NotAModel"),
        (
            lambda: AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=97)),
            "BloomForCausalLM does not use Transformers' attention interface",
        ),
        (
            lambda: AutoModelForSeq2SeqLM.from_config(
                BartConfig(d_model=32, encoder_layers=1, decoder_layers=1, vocab_size=97)
            ),
            "is an encoder-decoder; only decoders can be patched",
        ),
    ],
)
def test_models_that_cannot_be_patched(make, message):
    model = make()
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        patch_model(model, MASK)
    assert "hf_masking_patch" not in vars(model)


def test_context_parallelism_is_refused():
    """accelerate's hooks empty the mask slot of every attention; without our own check that is plain causal."""
    model = patch_model(build("llama"), MASK)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True
        )
    with pytest.raises(ValueError, match="context parallelism"):
        model(tokens(1, 5))


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_patch_through_a_wrapper_is_that_of_the_model():
    wrapper = patch_model(Wrapper(build("llama")), MASK)
    assert layer_masks(wrapper.inner) == layer_masks(wrapper) == [parse_mask(MASK)] * 2
    unpatch_model(wrapper.inner)
    assert torch.equal(wrapper(tokens(2, 17)).logits, logits(build("llama")))


def test_a_loaded_model_is_never_left_without_its_mask(tmp_path):
    """Transformers alone loads a patched checkpoint so that it refuses to run; only unpatch_model may change that."""
    patch_model(build("llama"), MASK).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with patched(model, "causal"):
        logits(model)
    with pytest.raises(ValueError, match=r"has no mask; load the checkpoint with hf_masking.from_pretrained\(path\)"):
        logits(model)
    assert model.config.hf_masking["mask"] == MASK
    assert torch.equal(logits(unpatch_model(patch_model(model))), logits(build("llama")))


def test_positional_arguments():
    model = patch_model(build("mistral"), MASK)
    assert torch.equal(model(tokens(2, 17), None, None, None, use_cache=True).logits, logits(model))


def test_large_document_ids_stay_apart():
    model, small = patch_model(build("llama"), MASK), torch.tensor([[0] * 5 + [1] * 7])
    large = torch.where(small == 1, 2**32, 0)
    one, other = (model(tokens(1, 12), document_ids=ids).logits for ids in (small, large))
    assert torch.equal(one, other)


def test_a_model_that_is_too_short_for_the_checks():
    with pytest.raises(ValueError, match="the checks need 12 positions and the model has 8; patch with check=False"):
        patch_model(build("gpt2", max_position_embeddings=8), MASK)


def test_masks_by_head_that_do_not_divide_the_heads_are_refused_at_once():
    model = build("llama")
    with pytest.raises(ValueError, match="gives 3 groups of heads, which do not divide the model's 4 query heads"):
        patch_model(model, "causal", layers={1: "heads[causal; window:2; window:3]"}, check=False)
    assert not layer_masks(model)


def restore(model):
    return unpatch_model(model)


def use_another_mask(model):
    with patched(model, "causal", check=False):
        pass
    return model


def patch_again(model):
    return patch_model(model, "causal", check=False)


@pytest.mark.parametrize("change", [restore, use_another_mask, patch_again])
def test_a_config_that_has_changed_under_a_mask_stays_changed(change):
    config = copy.deepcopy(CONFIGS["llama"])
    model = patch_model(type(build("llama"))(config), MASK, check=False)
    model.resize_token_embeddings(70, mean_resizing=False)
    model.config.use_cache = False
    change(model)
    assert (model.config.vocab_size, model.config.use_cache) == (70, False)
    ids = torch.full((1, 5), 69)
    assert model(ids, labels=ids).loss.isfinite()
