"""The layers of a cache: keys are numbered by their column, so that the retained ones can be read off."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
)

from hf_masking import parse_mask
from hf_masking.modeling import patch_model, running
from hf_masking.modeling.batch import Batch
from hf_masking.modeling.caching import eviction
from hf_masking.modeling.caching.layer import MaskedLayer
from hf_masking.modeling.patching.layer_mask import LayerMask

from ...masks.oracle import matrix
from ..families import build, tokens
from .test_decoding import CAUSAL_MASKS, decode


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
        """The returned keys are those of the columns, and no key that a later query reads is missing."""
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
    """Return the pairs of queries before position 460 and keys before 420, by brute force."""
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
    with pytest.raises(ValueError, match="it has evicted what the tokens before"):
        held.crop(-20)
