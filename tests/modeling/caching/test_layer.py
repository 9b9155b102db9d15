"""Cached decoding equals recomputation, whatever the model would keep by itself."""

import copy
import functools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    QuantizedCache,
    StaticCache,
    pipeline,
)

from hf_masking import parse_mask
from hf_masking.attention import BACKENDS
from hf_masking.modeling import patch_model, patched, running, unpatch_model
from hf_masking.modeling.batch import Batch
from hf_masking.modeling.caching import eviction
from hf_masking.modeling.caching.layer import MaskedLayer
from hf_masking.modeling.patching.layer_mask import LayerMask

from ...masks.oracle import matrix
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


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_given_cache_is_adopted(family):
    model = patch_model(build(family), "window:9|sinks:1", replace_model_window=True, check=False)
    inputs, ones = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    whole = model(inputs, use_cache=False).logits
    in_pieces = decode(model, inputs, ones, [12] + [1] * 9, with_mask=False, cache=DynamicCache(config=model.config))
    torch.testing.assert_close(in_pieces, whole, rtol=0, atol=1e-4)


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


# The layers themselves. Keys are numbered by their column, so that what is kept can be read off.


class Run:
    """A cache layer under a mask, and beside it a list of everything that was ever appended."""

    def __init__(self, mask, real):
        self.mask, self.real = parse_mask(mask), torch.tensor(real).bool()
        self.layer = MaskedLayer(LayerMask(self.mask))
        self.rows = torch.arange(len(real))

    def append(self, new):
        seen = self.layer.seen
        ids = torch.where(self.real[self.rows, : seen + new], 0, -1)
        columns = torch.arange(seen, seen + new).float()
        states = (columns[None, :] + 1000 * self.rows[:, None].float())[:, None, :, None]
        stacked = Batch(seen, new, ids, cache=SimpleNamespace(layers=[self.layer]))
        module = torch.nn.Identity()
        running.push(module, stacked)
        try:
            keys, values = self.layer.update(states, -states)
        finally:
            # What stays on the stack would fail tests that have nothing to do with it.
            running.pop(module)
        assert torch.equal(keys, -values) and keys.data_ptr() != values.data_ptr()
        self.check(keys, stacked)

    def check(self, keys, stacked):
        """What is handed out is what the columns say, and nothing that a later query reads is missing."""
        columns = self.layer.columns
        assert torch.equal(keys[:, 0, :, 0], columns[None].float() + 1000 * self.rows[:, None].float())
        assert torch.equal(keys, self.layer.keys)
        positions = stacked.positions(torch.arange(self.layer.seen)).expand(len(self.rows), -1)
        for row, next_position in enumerate(stacked.count(self.layer.eviction.floor).expand(len(self.rows)).tolist()):
            dropped = set(range(self.layer.seen)) - set(columns.tolist())
            read = [position for column in dropped if (position := int(positions[row, column])) >= 0]
            assert not pairs(self.mask)[next_position:, read].any()


@functools.cache
def pairs(mask):
    """What the queries before position 460 may read of the keys before 420, by brute force."""
    return matrix(mask, range(460), range(420)) if mask.name == "window" else matrix(mask, range(90), range(60))


LENGTHENING = st.tuples(st.just("append"), st.sampled_from([1, 1, 1, 2, 5, 17]))
CHANGES = st.one_of(
    LENGTHENING,
    LENGTHENING,
    st.tuples(st.just("crop"), st.integers(0, 6)),
    st.tuples(st.sampled_from(["reorder", "select"]), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
    st.tuples(st.just("repeat"), st.just(2)),
)


@given(
    st.sampled_from([mask for mask in CAUSAL_MASKS if mask != "causal"]),
    st.lists(st.lists(st.booleans(), min_size=60, max_size=60), min_size=2, max_size=2),
    st.lists(CHANGES, min_size=4, max_size=14),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_keeps_what_can_still_be_read(mask, real, changes, with_gradients):
    """With gradients a step makes new tensors, without it writes in place."""
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(with_gradients):
        patch.setattr(eviction, "ROLLBACK", 6)
        run = Run(mask, real)
        for change, argument in changes:
            layer = run.layer
            if change == "append" and layer.seen + argument <= 60:
                run.append(argument)
            elif change == "crop" and argument <= layer.seen:
                seen = layer.seen
                try:
                    layer.crop(-argument)
                    assert layer.seen == seen - argument
                except ValueError:
                    assert seen - argument < layer.eviction.floor <= seen - argument + 6
            elif change == "repeat" and len(run.rows) <= 4:
                layer.batch_repeat_interleave(argument)
                run.rows = run.rows.repeat_interleave(argument)
            elif change in ("reorder", "select") and layer.seen:
                rows = torch.tensor(argument)
                (layer.reorder_cache if change == "reorder" else layer.batch_select_indices)(rows)
                run.rows = run.rows[rows]


def test_sixty_four_tokens_can_be_taken_back():
    run = Run("window:4", [[True] * 400])
    for _ in range(300):
        run.append(1)
    assert len(run.layer.columns) <= 4 + 64 + 1 + 2
    run.layer.crop(-64)
    run.append(3)
    with pytest.raises(ValueError, match=r"a cache of 239 tokens cannot be cropped to 39: it has evicted what the to"):
        run.layer.crop(-200)


@torch.no_grad()
def test_the_size_of_a_bounded_cache_does_not_grow():
    run = Run("window:40", [[True] * 420])
    sizes = set()
    for step in range(400):
        run.append(1)
        if step > 200:
            sizes.add(run.layer.held_bytes)
    assert sizes == {2 * 4 * (40 + 64 - 1 + 1 + 1)}  # float32 keys and values of size 1: window, rollback, new, spare


@torch.no_grad()
def test_a_reset_cache_is_an_empty_one():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    given = DynamicCache()
    first = model(tokens(2, 90), past_key_values=given).logits
    given.reset()
    assert given.get_seq_length() == 0
    assert torch.equal(model(tokens(2, 90), past_key_values=given).logits, first)


@torch.no_grad()
def test_transformers_is_told_the_truth():
    model = patch_model(build("llama"), "window:4", check=False)
    given = model(tokens(1, 90), use_cache=True).past_key_values
    model(tokens(1, 1), past_key_values=given)
    assert given.get_seq_length() == given.get_query_offset() == 91
    assert given.get_mask_sizes(3, 0) == (94, 0)
    assert len(given.layers[0].columns) < 75 and given.layers[0].keys.shape[2] == len(given.layers[0].columns)


def test_gradients_flow_through_a_cache():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    whole = model(tokens(1, 12), use_cache=False).logits
    cached = decode(model, tokens(1, 12), torch.ones(1, 12), [7, 1, 1, 3], with_mask=False)
    weight = torch.randn_like(whole)
    for logits in (whole, cached):
        model.zero_grad()
        (logits * weight).sum().backward()
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        if logits is whole:
            expected = grads
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * max(1, float(other.abs().max())))


@torch.no_grad()
def test_a_cache_survives_inference_mode_and_copies():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    whole = model(tokens(1, 99), use_cache=False).logits
    with torch.inference_mode():
        given = model(tokens(1, 99)[:, :90], use_cache=True).past_key_values
    twin = copy.deepcopy(given)
    for held in (given, twin):
        step = model(tokens(1, 99)[:, 90:], past_key_values=held)
        torch.testing.assert_close(step.logits, whole[:, 90:], rtol=0, atol=1e-4)


def filled(model, length=90):
    return model(tokens(1, length), use_cache=True).past_key_values


@torch.no_grad()
def test_caches_that_cannot_be_exact_are_refused(monkeypatch):
    stock = build("mistral")
    kept_by_config = DynamicCache(config=stock.config)
    stock(tokens(1, 9), past_key_values=kept_by_config)
    model = patch_model(stock, "window:9|sinks:1", replace_model_window=True, check=False)
    with pytest.raises(ValueError, match="this cache holds 9 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=kept_by_config)

    model = patch_model(build("llama"), "window:4", check=False)
    given = filled(model)
    model(tokens(1, 1), past_key_values=given)
    patch_model(model, "window:8", check=False)
    with pytest.raises(
        ValueError, match="this cache was filled under 'window:4', and the layer's mask is 'window:8' now"
    ):
        model(tokens(1, 1), past_key_values=given)

    quantized = QuantizedCache.__new__(QuantizedCache)
    quantized.layers = []
    with pytest.raises(ValueError, match="a quantized cache changes the keys"):
        model(tokens(1, 3), past_key_values=quantized)
    with pytest.raises(ValueError, match="not supported"):
        model.generate_batch([[3, 4, 5]])


@torch.no_grad()
def test_a_mask_that_is_forgotten_in_a_later_call_is_noticed():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    attention_mask = torch.ones(2, 90, dtype=torch.long)
    attention_mask[0, :8] = 0
    given = model(tokens(2, 90), attention_mask=attention_mask).past_key_values
    longer = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    model(tokens(2, 1), attention_mask=longer, past_key_values=given)
    with pytest.raises(ValueError, match="attention_mask differs from the previous call on tokens that are already"):
        model(tokens(2, 1), past_key_values=given)


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


@torch.no_grad()
def test_a_layer_that_was_offloaded_goes_on():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    whole = model(tokens(1, 99), use_cache=False).logits
    held = model(tokens(1, 99)[:, :90], use_cache=True).past_key_values
    for layer in held.layers:
        layer.offload()
        layer.prefetch()
    step = model(tokens(1, 99)[:, 90:], past_key_values=held)
    torch.testing.assert_close(step.logits, whole[:, 90:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_cache_that_is_half_updated_or_left_behind_is_refused():
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    held = filled(model)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens(1, 1), past_key_values=held)
    hook.remove()
    with pytest.raises(ValueError, match="a call that failed has left this cache half updated"):
        model(tokens(1, 1), past_key_values=held)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("length", [30, 90])
def test_a_cache_is_of_a_model_with_its_mask_or_without(family, length):
    """A short one has dropped nothing, but it was read under the mask all the same."""
    model = patch_model(build(family), "window:4|sinks:1", check=False)
    held = filled(model, length)
    with patched(model, "window:3", check=False), pytest.raises(ValueError, match="start with an empty cache"):
        model(tokens(1, 1), past_key_values=copy.deepcopy(held))
    model(tokens(1, 1), past_key_values=held)
    unpatch_model(model)
    for new in (1, 3):
        with pytest.raises(
            ValueError, match=rf"this cache holds {length + 1} tokens read under .*is not patched; start"
        ):
            model(tokens(1, new), past_key_values=held)

    held.reset()
    dense = model(tokens(1, 9)).logits
    torch.testing.assert_close(model(tokens(1, 9), past_key_values=held).logits, dense)
    model(tokens(1, 1), past_key_values=held)
    patch_model(model, "window:4|sinks:1", check=False)
    with pytest.raises(ValueError, match="this cache holds 10 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=held)


@torch.no_grad()
def test_a_static_cache_of_an_unpatched_model_is_refused():
    model = build("llama")
    held = StaticCache(config=model.config, max_cache_len=40)
    model(tokens(1, 9), past_key_values=held)
    patch_model(model, "window:4|sinks:1", check=False)
    with pytest.raises(ValueError, match="this cache holds 9 tokens that no patched model has read"):
        model(tokens(1, 1), past_key_values=held)
    held.reset()
    whole = model(tokens(1, 12)).logits
    pieces = [model(piece, past_key_values=held).logits for piece in tokens(1, 12).split([8, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_unpatched_model_inside_a_patched_forward_has_a_cache_of_its_own():
    student, teacher = patch_model(build("llama"), "window:4", check=False), patch_model(build("qwen3"), "window:4")
    held = filled(teacher, 30)
    unpatch_model(teacher)
    student.model.layers[1].register_forward_pre_hook(lambda *_: teacher(tokens(1, 1), past_key_values=held) and None)
    with pytest.raises(ValueError, match="this cache holds 30 tokens read under 'window:4'"):
        student(tokens(1, 30), use_cache=False)


@torch.no_grad()
def test_what_has_been_dropped_stays_dropped_when_rows_are_chosen():
    """The floor may not move back, even if fewer tokens have been seen when more are dropped."""
    model = patch_model(build("llama"), "window:4|sinks:1", check=False)
    attention_mask = torch.ones(2, 300, dtype=torch.long)
    attention_mask[1, :50] = 0
    held = model(tokens(2, 300), attention_mask=attention_mask).past_key_values
    longer = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    model(tokens(2, 1), attention_mask=longer, past_key_values=held)
    floor = held.layers[0].eviction.floor
    assert floor == 300 - 64
    held.crop(-60)
    held.batch_select_indices(torch.tensor([1]))
    for _ in range(3):
        seen = held.get_seq_length()
        model(tokens(1, 1), attention_mask=longer[1:, : seen + 1], past_key_values=held)
    assert held.layers[0].eviction.floor >= floor
    with pytest.raises(ValueError, match="it has evicted what the toens before"):
        held.crop(-20)
