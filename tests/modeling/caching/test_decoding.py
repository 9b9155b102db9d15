"""Cached decoding equals recomputation, whatever the model itself would retain."""

import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    pipeline,
)

from hf_masking.attention import BACKENDS
from hf_masking.modeling import patch_model

from ..families import CONFIGS, MASKS, build, tokens

LENGTH = 21
CAUSAL_MASKS = [mask for mask in MASKS if not mask.startswith("block_causal")]


def positions(attention_mask):
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def decode(model, inputs, attention_mask, pieces, with_mask=True, cache=None):
    logits, seen = [], 0
    for piece in inputs.split(pieces, dim=1):
        seen += piece.shape[1]
        arguments = {"attention_mask": attention_mask[:, :seen]} if with_mask else {}
        position_ids = positions(attention_mask)[:, seen - piece.shape[1] : seen]
        output = model(piece, position_ids=position_ids, past_key_values=cache, use_cache=True, **arguments)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("mask", CAUSAL_MASKS)
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_decoding_step_by_step(family, mask):
    model = patch_model(build(family), mask, layers={1: "strided:2|sinks:1"}, check=False)
    inputs, attention_mask = tokens(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    attention_mask[1, :5] = 0
    attention_mask[2, 8:10] = 0
    real = attention_mask.bool()
    whole = model(inputs, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False).logits
    in_pieces = decode(model, inputs, attention_mask, [9, 1, 1, 3, 1, 1, 5])
    torch.testing.assert_close(in_pieces[real], whole[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "mask", "backend"),
    [
        *(("llama", "window:4|sinks:2", backend) for backend in sorted({"auto", *BACKENDS} - {"flex"})),
        *(
            ("gemma3", "adaptive_span:max=3,ramp=2|sinks:1", backend)
            for backend in ("auto", *(name for name in sorted(BACKENDS) if BACKENDS[name].adaptive))
        ),
    ],
)
@torch.no_grad()
def test_decoding_under_a_named_backend(family, mask, backend):
    """A backend that computes neighbouring keys retains them all; the others go on where keys have been evicted."""
    model = patch_model(build(family), mask, backend=backend, check=False)
    inputs, attention_mask = tokens(2, 110), torch.ones(2, 110, dtype=torch.long)
    attention_mask[1, :5] = attention_mask[1, 8] = attention_mask[:, 80:82] = 0
    real = attention_mask.bool()
    whole = model(inputs, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False).logits
    cache = DynamicCache(config=model.config)
    in_pieces = decode(model, inputs, attention_mask, [90, 1, 1, 8, 1, 1, 8], cache=cache)
    torch.testing.assert_close(in_pieces[real], whole[real], rtol=0, atol=1e-4)
    evicts = backend not in ("blockwise", "flex")
    assert all((len(layer.columns) < 90) == evicts for layer in cache.layers)


def greedy(model, inputs, attention_mask, steps):
    """Recomputation without a cache: the last logits of the whole text, again and again."""
    for _ in range(steps):
        logits = model(
            inputs, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False
        ).logits
        inputs = torch.cat([inputs, logits[:, -1].argmax(-1, keepdim=True)], 1)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    return inputs


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize(("family", "backend"), [*((f, "auto") for f in CONFIGS), ("gemma3", "blockwise")])
@torch.no_grad()
def test_generate_equals_recomputation(family, backend, options):
    model = patch_model(build(family), "window:4|sinks:2", backend=backend, check=False)
    model.generation_config.eos_token_id = None
    model.generation_config.disable_compile = True
    inputs, attention_mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    attention_mask[1, :4] = 0
    generated = model.generate(inputs, attention_mask=attention_mask, max_new_tokens=12, do_sample=False, **options)
    assert torch.equal(generated, greedy(model, inputs, attention_mask, 12))


@torch.no_grad()
def test_beams():
    model = patch_model(build("llama"), "strided:3|sinks:2", check=False)
    inputs = tokens(2, 9)
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(inputs, **settings), model.generate(inputs, use_cache=False, **settings))


@pytest.mark.parametrize("as_dictionary", [True, False])
@torch.no_grad()
def test_a_packed_cache_asks_for_document_ids(as_dictionary):
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    inputs, ids = tokens(1, 12), torch.tensor([[0] * 5 + [1] * 7])
    position_ids = torch.tensor([[*range(5), *range(7)]])
    whole = model(inputs, position_ids=position_ids, use_cache=False).logits
    cache = model(inputs[:, :10], position_ids=position_ids[:, :10], return_dict=as_dictionary)[1]
    with pytest.raises(ValueError, match=r"packed documents.*pass document_ids of shape \[1, 11\]"):
        model(inputs[:, 10:11], position_ids=position_ids[:, 10:11], past_key_values=cache)
    step = model(inputs[:, 10:], position_ids=position_ids[:, 10:], document_ids=ids, past_key_values=cache)
    torch.testing.assert_close(step.logits, whole[:, 10:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_mask_with_lookahead_refuses_generation(use_cache):
    model = patch_model(build("llama"), "block_causal:4", check=False)
    with pytest.raises(ValueError, match="looks 3 tokens ahead, so a model under it cannot generate"):
        model.generate(tokens(1, 8), max_new_tokens=3, use_cache=use_cache)
    cache = model(tokens(1, 8), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot generate"):
        model(tokens(1, 1), past_key_values=cache)


@pytest.mark.parametrize("new", [1, 4])
def test_a_document_that_starts_behind_cached_tokens_needs_document_ids(new):
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    cache = model(tokens(1, 8), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"start a new document after cached tokens; pass document_ids of shape"):
        model(tokens(1, new), position_ids=torch.arange(new)[None], past_key_values=cache)


def holes_after_the_seam(pads, length):
    """Two rows of cached tokens, of which one then has ``pads`` columns of padding before its new tokens."""
    attention_mask = torch.ones(2, length, dtype=torch.long)
    attention_mask[0, 6 : 8 + pads] = 0
    position_ids = positions(attention_mask).masked_fill(attention_mask == 0, 0)  # as `generate` makes them
    return attention_mask, position_ids


@pytest.mark.parametrize("pads", [1, 3])
@pytest.mark.parametrize("mask", ["causal", "window:4|sinks:1"])
@torch.no_grad()
def test_padding_right_after_the_cached_tokens_starts_no_document(mask, pads):
    model, inputs = patch_model(build("llama"), mask, check=False), tokens(2, 14)
    attention_mask, position_ids = holes_after_the_seam(pads, 14)
    whole = model(inputs, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits
    cache, logits = None, []
    for columns in (slice(0, 8), slice(8, 9), slice(9, 14)):
        given = {"attention_mask": attention_mask[:, : columns.stop], "position_ids": position_ids[:, columns]}
        output = model(inputs[:, columns], past_key_values=cache, use_cache=True, **given)
        cache = output.past_key_values
        logits.append(output.logits)
    real = attention_mask.bool()
    torch.testing.assert_close(torch.cat(logits, 1)[real], whole[real], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_document_that_starts_after_such_padding_is_still_seen():
    model, inputs = patch_model(build("llama"), "causal", check=False), tokens(2, 14)
    attention_mask, position_ids = holes_after_the_seam(3, 14)
    cache = model(inputs[:, :8], attention_mask=attention_mask[:, :8], use_cache=True).past_key_values
    position_ids[0, 11:] = torch.arange(3)
    with pytest.raises(ValueError, match="start a new document after cached tokens"):
        model(inputs[:, 8:], attention_mask=attention_mask, position_ids=position_ids[:, 8:], past_key_values=cache)


@pytest.mark.parametrize("mask", ["causal", "window:4|sinks:1"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_second_turn_goes_on_where_a_row_has_ended_early(family, mask):
    model, inputs = patch_model(build(family), mask, check=False), tokens(2, 9)
    first = model.generate(inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    # What row 0 writes early, and row 1 never.
    column = next(column for column in range(9, 13) if first[0, column] not in first[1, 9:])
    ending = int(first[0, column])
    settings = {"do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
    one = model.generate(inputs, max_new_tokens=6, eos_token_id=ending, **settings)
    assert not one.sequences[0, column + 1 :].any()
    ended = torch.ones(2, 15, dtype=torch.long)
    ended[0, column + 1 :] = 0
    texts = torch.cat([one.sequences, tokens(2, 4, seed=7)], 1)
    attention_mask = torch.nn.functional.pad(ended, (0, 4), value=1)
    settings |= {"attention_mask": attention_mask, "max_new_tokens": 8, "eos_token_id": None}
    two = model.generate(texts, past_key_values=one.past_key_values, **settings)
    assert torch.equal(two.sequences, model.generate(texts, use_cache=False, **settings).sequences)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_static_cache_that_drops_needed_keys_is_refused(family):
    model = patch_model(build(family), "window:9|sinks:1", replace_model_window=True, check=False)
    settings = {"max_new_tokens": 6, "cache_implementation": "static", "disable_compile": True, "eos_token_id": None}
    with pytest.raises(ValueError, match="a static cache keeps no more than the model's own window"):
        model.generate(tokens(1, 9), **settings)
    patch_model(model, "window:9|sinks:1", check=False)
    attention_mask = torch.ones(1, 9, dtype=torch.long)
    attention_mask[0, 6] = 0
    with pytest.raises(ValueError, match="has a hole inside the window of a static cache"):
        model.generate(tokens(1, 9), attention_mask=attention_mask, **settings)


@torch.no_grad()
def test_a_packed_cache_keeps_everything():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    ids = torch.tensor([[0] * 80 + [1] * 20])
    whole = model(tokens(1, 100), document_ids=ids, use_cache=False).logits
    given = model(tokens(1, 100)[:, :90], document_ids=ids[:, :90], use_cache=True).past_key_values
    step = model(tokens(1, 100)[:, 90:], document_ids=ids, past_key_values=given)
    torch.testing.assert_close(step.logits, whole[:, 90:], rtol=0, atol=1e-4)
    assert len(given.layers[0].columns) == 100


def test_a_saved_model_writes_the_same_in_another_process(tmp_path):
    model = patch_model(build("llama"), "window:4|sinks:2", check=False)
    model.save_pretrained(tmp_path)
    settings = "max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0"
    code = (
        "import torch, hf_masking\n"
        f"model = hf_masking.from_pretrained({str(tmp_path)!r}, check=False)\n"
        f"print(model.generate(torch.tensor({tokens(1, 20).tolist()}), {settings}).tolist())"
    )
    written = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = model.generate(tokens(1, 20), max_new_tokens=100, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written.strip() == str(here.tolist())


@torch.no_grad()
def test_a_pipeline_keeps_a_bounded_cache(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = patch_model(AutoModelForCausalLM.from_pretrained(model_folder), "window:4|sinks:1", check=False)
    given = DynamicCache()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (written,) = write("The quick", max_new_tokens=90, do_sample=False, past_key_values=given)
    tokens = tokenizer("The quick", return_tensors="pt")["input_ids"]
    again = model.generate(tokens, max_new_tokens=90, do_sample=False, use_cache=False)
    assert written["generated_text"] == tokenizer.decode(again[0])
    assert given.get_seq_length() == 98 and len(given.layers[0].columns) < 75
