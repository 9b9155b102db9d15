"""Adaptive masks where errors are easy: texts in pieces, compilers, losses, files, other masks."""

import contextlib
import copy
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4TextConfig,
)

from hf_masking import (
    UnsupportedModelError,
    check_model,
    from_pretrained,
    mask_penalties,
    masked_attention,
    patch_model,
    patched,
)
from hf_masking.modeling import is_learned, running
from hf_masking.modeling.features import _warn_once

from .families import build
from .test_adaptive import learn, model_of, tokens


def learned_of(model):
    """Return the learned parameters of masks in a model by name; there must be some."""
    learned = {name: parameter for name, parameter in model.named_parameters() if is_learned(name)}
    assert learned
    return learned


@pytest.mark.parametrize(
    "spec",
    ["adaptive_span:max=60,ramp=20&strided:4", "(adaptive_span:max=30,ramp=5)&(dilated:9,2)", "adaptive_span:max=20"],
)
def test_a_text_in_pieces_is_the_whole_text(spec):
    model, ids, cache = model_of("llama", spec), tokens(2, 78), DynamicCache()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split([41, 30, 7], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "spec",
    ["adaptive_span:max=20,ramp=4", "adaptive_span:max=20,dynamic=true", "relevance:rank=3", "top_blocks:block=4,k=2"],
)
@pytest.mark.filterwarnings("ignore")  # of the compiler, on what it leaves to Python
def test_a_compiled_model_is_the_model(spec):
    model, ids = model_of("llama", spec), tokens(1, 20)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(ids).logits, model(ids).logits)


@pytest.mark.parametrize("spec", ["adaptive_span:max=20", "adaptive_span:max=20,dynamic=true", "relevance:rank=2"])
def test_two_forwards_may_come_before_one_backward(spec):
    model = model_of("llama", spec).train()
    (model(tokens(1, 9)).logits.sum() + model(tokens(1, 12)).logits.sum()).backward()
    assert {parameter.grad is not None for parameter in learned_of(model).values()} == {True}


def test_a_cache_keeps_the_last_key_of_a_span_that_is_no_integer(monkeypatch):
    monkeypatch.setattr("hf_masking.modeling.caching.eviction.ROLLBACK", 0)
    model, ids = patch_model(build("llama"), "adaptive_span:max=10,ramp=1", check=False), tokens(1, 60)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.35) if is_learned(name) else None
        cache, expected = DynamicCache(), model(ids, use_cache=False).logits
        got = torch.cat([model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(60)], 1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("first", "then"),
    [("causal", "top_blocks:block=4,k=1"), ("top_blocks:block=4,k=1", "top_blocks:block=8,k=1"),
     ("top_blocks:block=4,k=1", "causal")],
)  # fmt: skip
def test_a_cache_goes_on_under_its_mask_only(first, then):
    model, cache = patch_model(build("llama"), first, check=False), DynamicCache()
    model(tokens(1, 20), past_key_values=cache, use_cache=True)
    patch_model(model, then, check=False)
    with pytest.raises(ValueError, match="this cache was filled under"):
        model(tokens(1, 1), past_key_values=cache, use_cache=True)


def test_autocast_changes_no_choice():
    model, ids = model_of("llama", "relevance:rank=3,threshold=0.4").eval(), tokens(2, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole, cache = model(ids, use_cache=False).logits, DynamicCache()
        steps = [model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(40)]
    assert float((torch.cat(steps, 1) - whole).abs().mean()) < 0.02 * float(whole.std())


@pytest.mark.parametrize("spec", ["relevance:rank=3,threshold=0.2", "adaptive_span:max=20,ramp=4,dynamic=true"])
def test_what_is_learned_keeps_double_precision(spec):
    model = learn(patch_model(build("llama").double(), spec, check=False))
    assert check_model(model).passed


def test_a_model_that_has_come_to_nan_says_so_in_its_loss():
    model = model_of("llama", "adaptive_span:max=20,dynamic=true")
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens(1, 9)[0, 4]] = torch.nan
    assert bool(model(tokens(1, 9), labels=tokens(1, 9)).loss.isnan())


def test_penalties_are_collected_in_evaluation_mode_too():
    model = model_of("llama", "adaptive_span:max=20").eval()
    with mask_penalties() as penalties:
        model(tokens(1, 9))
    assert len(penalties) == 2 and penalties[0].requires_grad


@pytest.mark.parametrize("cause", ["reentrant", "frozen"])
def test_penalties_that_cannot_be_collected_are_told(cause, caplog):
    model = model_of("llama", "adaptive_span:max=20").train()
    _warn_once.cache_clear()
    if cause == "frozen":
        model.requires_grad_(False)
    off = torch.no_grad() if cause == "reentrant" else contextlib.nullcontext()
    with mask_penalties() as penalties, off, caplog.at_level(logging.WARNING, logger="hf_masking"):
        model(tokens(1, 9))
    assert not penalties
    assert "mask_penalties() collects nothing" in caplog.text


def test_a_threshold_can_be_changed_after_learning(caplog):
    model, ids = model_of("llama", "relevance:rank=3,threshold=0.2").eval(), tokens(1, 30)
    key = model.model.layers[0].self_attn.hf_masking.relevance.key
    with caplog.at_level(logging.WARNING, logger="hf_masking"):
        patch_model(model, "relevance:rank=3,threshold=0.3|sinks:1", check=False)
    assert model.model.layers[0].self_attn.hf_masking.relevance.key is key
    assert "is dropped" not in caplog.text
    with torch.no_grad():
        before = model(ids).logits
        with patched(model, "window:4|sinks:1", check=False):
            assert not torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, before)
    assert "is dropped" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="hf_masking"):
        patch_model(model, "relevance:rank=4|sinks:1", check=False)
    assert "what 'relevance:rank=3,threshold=0.3' had learned is dropped" in caplog.text


def test_a_plain_load_with_the_mask_named_says_what_it_lacks(tmp_path, caplog):
    model_of("llama", "relevance:rank=3|sinks:1").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    with caplog.at_level(logging.WARNING, logger="hf_masking"):
        patch_model(loaded, "relevance:rank=3|sinks:1", check=False)
    assert "only hf_masking.from_pretrained(path) loads it" in caplog.text


def test_a_variant_and_strangers_beside_it(tmp_path):
    model = model_of("llama", "adaptive_span:max=20|sinks:1")
    model.save_pretrained(tmp_path)
    learn(model, seed=9).save_pretrained(tmp_path, variant="fp16")
    (tmp_path / "old.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    loaded = from_pretrained(tmp_path, variant="fp16", check=False)
    for name, parameter in learned_of(model).items():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_shards_are_found(tmp_path):
    model = model_of("llama", "relevance:rank=3|sinks:1").eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


def test_a_mask_that_does_not_fit_what_was_saved_is_refused(tmp_path):
    model_of("llama", "relevance:rank=3|sinks:1").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("rank=3", "rank=5"))
    with pytest.raises(ValueError, match=r"holds for layer 0: .* shape \[6, 24\], and its mask needs .* \[10, 24\]"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="output_loading_info=True is not supported"):
        from_pretrained(tmp_path, output_loading_info=True)


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}


def test_names_that_transformers_changes_are_found(tmp_path):
    text = {**TINY, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=90, boi_token_index=91,
        eoi_token_index=92,
    )  # fmt: skip
    torch.manual_seed(0)
    model = learn(patch_model(Gemma3ForConditionalGeneration(config).eval(), "relevance:rank=3|sinks:1", check=False))
    model.save_pretrained(tmp_path)
    saved = learned_of(model)
    for name, parameter in learned_of(from_pretrained(tmp_path, check=False)).items():
        (same,) = (other for place, other in saved.items() if place.split("layers")[1] == name.split("layers")[1])
        assert torch.equal(parameter, same), name


@pytest.mark.parametrize("spec", ["adaptive_span:max=20", "relevance:rank=3", "top_blocks:block=4,k=2"])
def test_layers_with_heads_of_their_own(spec):
    config = Gemma4TextConfig(
        **TINY, num_key_value_heads=2, head_dim=8, global_head_dim=16, num_global_key_value_heads=1,
        attention_k_eq_v=True, layer_types=["sliding_attention", "full_attention"], sliding_window=16,
        hidden_size_per_layer_input=0, vocab_size_per_layer_input=97, num_kv_shared_layers=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = patch_model(AutoModelForCausalLM.from_config(config).eval(), spec)
    assert check_model(learn(model)).passed


def test_an_encoder_of_images_beside_the_decoder_gets_no_mask():
    text = Gemma4TextConfig(
        **TINY, num_key_value_heads=2, head_dim=8, layer_types=["sliding_attention", "full_attention"],
        sliding_window=16, hidden_size_per_layer_input=0, vocab_size_per_layer_input=97, num_kv_shared_layers=0,
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(Gemma4Config(text_config=text, vision_config=vision, audio_config=None))
    patch_model(model, "adaptive_span:max=20", check=False)
    learned = [name for name, _ in model.named_parameters() if is_learned(name)]
    assert len(learned) == 2 and all("language_model" in name for name in learned)
    with pytest.raises(ValueError, match=r"has no mask; .* encoders beside a patched decoder are not supported"):
        model.get_image_features(torch.rand(1, 16, 48), torch.zeros(1, 16, 2, dtype=torch.long))


def test_layers_that_share_keys_are_refused():
    types = ["sliding_attention", "full_attention"] * 2
    text = Gemma4TextConfig(**TINY | {"num_hidden_layers": 4}, num_kv_shared_layers=2, layer_types=types)
    with pytest.raises(UnsupportedModelError, match="has layers that share keys, which are not supported"):
        patch_model(AutoModelForCausalLM.from_config(text), "window:4")


def test_summaries_of_blocks_that_the_attention_mask_moves():
    """Hidden later, cached tokens give up their positions, and blocks become others."""
    model, ids = patch_model(build("llama"), "top_blocks:block=4,k=2", check=False), tokens(1, 42)
    cache = model(ids[:, :40], use_cache=True).past_key_values
    seen = torch.ones(1, 42, dtype=torch.long)
    model(ids[:, 40:41], past_key_values=cache, attention_mask=seen[:, :41])
    seen[:, :6] = 0
    step = model(ids[:, 41:], past_key_values=cache, attention_mask=seen).logits
    for layer in cache.layers:
        layer.crop(41)
        layer._summaries = None
    anew = model(ids[:, 41:], past_key_values=cache, attention_mask=seen).logits
    torch.testing.assert_close(step, anew, atol=1e-5, rtol=0)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["forward", "recomputation"])
@pytest.mark.parametrize("other", ["itself", "a static mask"])
def test_an_interrupt_inside_an_adaptive_layer_leaves_nothing(other, where, monkeypatch):
    """torch runs the hooks that clean up after an Exception, and not after Ctrl-C in a notebook."""
    monkeypatch.setattr(running, "_here", running._Here())
    model = model_of("llama", "relevance:rank=3|sinks:1")
    then = model if other == "itself" else patch_model(build("qwen3"), "window:4", check=False)
    with torch.no_grad():
        expected = then.eval()(tokens(1, 9), use_cache=False).logits
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

    def run():
        return model(tokens(1, 9), use_cache=False).logits.sum()

    interrupted = run().backward if where == "recomputation" else run
    with monkeypatch.context() as broken:
        broken.setattr("hf_masking.modeling.forward.interface.masked_attention", interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    model.eval()
    cache = DynamicCache()
    with torch.no_grad():
        steps = [then(piece, past_key_values=cache).logits for piece in tokens(1, 9).split([4, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-4, rtol=0)
    assert all((layer.features is None) == (then is not model) for layer in cache.layers)
    # Of a recomputation nobody knows that it has ended, until its model runs again.
    assert bool(running._here.calls) == (then is not model and where == "recomputation")


def test_features_without_a_mask_that_reads_them_are_refused():
    x = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="'window:2' is not adaptive and takes no features"):
        masked_attention(x, x, x, "window:2", features=[torch.ones(1)])


@pytest.mark.filterwarnings("ignore")  # of peft, on what it asks the hub for
def test_a_named_mask_learns_and_is_saved_with_an_adapter(tmp_path):
    base, ids = build("llama"), tokens(1, 20)
    options = LoraConfig(target_modules=["q_proj"], modules_to_save=["adaptive_span"], init_lora_weights=False)
    model = get_peft_model(
        patch_model(copy.deepcopy(base), "adaptive_span:max=20|sinks:1", check=False), options
    ).train()
    with mask_penalties() as penalties:
        model(input_ids=ids)
    sum(penalties).backward()
    moved = {name: tensor for name, tensor in model.named_parameters() if is_learned(name) and tensor.grad is not None}
    assert len(moved) == 2
    with torch.no_grad():
        for parameter in moved.values():
            parameter.fill_(0.3)
        expected = model.eval()(input_ids=ids).logits
        model.save_pretrained(tmp_path)
        patch_model(base, "adaptive_span:max=20|sinks:1", check=False)
        assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=ids).logits, expected)
