"""A window of the model's own: what it takes from a mask, against brute force, and that every mask meets it alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GptOssConfig

from hf_masking import effective_mask, effective_weights, parse_mask, patch_model
from hf_masking.masks import SlidingWindow, Tile
from hf_masking.modeling.base_model.own_window import OwnWindow
from hf_masking.plan import Lengths, plan_of

from ...masks.oracle import allowed, matrix
from ..families import MASKS, WINDOW, build, own_windows, tokens
from ..test_equals_dense import give_layers_a_dense_mask

LENGTH = 17
PREFIX = {"prefix_lengths": [7]}
SPANS = {"span_ids": torch.tensor([[-1, -1, 0, 0, 0, -1, -1, *[1] * 8, -1, -1]])}


def model_of(family):
    if family != "gpt_oss":
        return build(family), own_windows(family)
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=97, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, head_dim=6,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"], initializer_range=0.3, max_position_embeddings=128,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model, [WINDOW, None]


def pairs(mask, window):
    """Pair by pair; the window says how far back, and nothing of what is ahead."""
    mask = parse_mask(mask)
    return torch.tensor(
        [[allowed(mask, i, j) and (window is None or i - j < window) for j in range(LENGTH)] for i in range(LENGTH)]
    )


@pytest.mark.parametrize(
    ("fixed", "named", "given"),
    [
        ("prefix:7|causal", "prefix|causal", PREFIX),
        ("prefix:7|window:3", "prefix|window:3", PREFIX),
        ("spans:2,5,7,15|window:4|sinks:1", "spans|window:4|sinks:1", SPANS),
        ("block_causal:4", None, {}),
        ("causal-sinks:2|prefix:7", "causal-sinks:2|prefix", PREFIX),
    ],
)
@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_a_window_limits_how_far_back_whoever_marks_what_is_bidirectional(family, fixed, named, given):
    stock, windows = model_of(family)
    stock.set_attn_implementation("eager")
    expected = [pairs(fixed, window) for window in windows]
    lowest = torch.finfo(torch.float32).min
    give_layers_a_dense_mask(stock, [torch.zeros(()).where(seen, lowest)[None, None] for seen in expected])
    inputs = tokens(1, LENGTH)
    logits = stock(inputs, use_cache=False).logits
    for mask, arguments in [(fixed, {}), (named, given)] if named else [(fixed, {})]:
        model = patch_model(model_of(family)[0], mask)
        for seen, layer in zip(effective_mask(model, input_ids=inputs, **arguments), expected, strict=True):
            assert torch.equal(seen[0], layer)
        torch.testing.assert_close(model(inputs, **arguments).logits, logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_masks_by_head_and_adaptive_masks_meet_the_window_alike():
    inputs = tokens(1, LENGTH)
    model = patch_model(build("mistral"), "heads[prefix:7|causal; window:3]")
    (seen, _) = effective_mask(model, input_ids=inputs)
    assert torch.equal(seen[0], torch.stack([pairs("prefix:7|causal", WINDOW), pairs("window:3", WINDOW)]))
    for prefix, arguments in (("prefix:7", {}), ("prefix", PREFIX)):
        model = patch_model(build("mistral"), f"{prefix}|adaptive_span:max=40,ramp=8")
        (weights, _) = effective_weights(model, input_ids=inputs, **arguments)
        assert torch.equal(weights[0, 0] > 0, pairs("prefix:7|causal", WINDOW))


@torch.no_grad()
def test_a_window_bounds_the_cache_of_a_mask_that_a_batch_completes():
    model = patch_model(build("mistral"), "prefix|causal", check=False)
    whole = model(tokens(1, 120), prefix_lengths=[9], use_cache=False).logits
    cache = model(tokens(1, 120)[:, :100], prefix_lengths=[9], use_cache=True).past_key_values
    steps = [model(tokens(1, 120)[:, i : i + 1], past_key_values=cache).logits for i in range(100, 120)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, 100:], rtol=0, atol=1e-4)
    assert all(len(layer.columns) < WINDOW + 64 + 20 for layer in cache.layers)


small = st.integers(1, 9)
ranges = st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda r: (r[0], r[0] + r[1]))


def inside(window, rows, columns):
    return torch.tensor([[i - j < window for j in columns] for i in rows], dtype=torch.bool).reshape(
        len(rows), len(columns)
    )


@given(small, ranges, ranges)
@settings(max_examples=300)
def test_every_answer_of_an_own_window(window, q_range, k_range):
    mask, rows, columns = OwnWindow(window), range(*q_range), range(*k_range)
    truth = inside(window, rows, columns)
    q, k = torch.tensor([*rows], dtype=torch.int32), torch.tensor([*columns], dtype=torch.int32)
    assert torch.equal(mask.allows(q[:, None], k[None]), truth)
    tile = int(mask.tiles(*(torch.tensor(bound) for bound in (*q_range, *k_range))))
    assert tile == (Tile.NONE if not truth.any() else Tile.ALL if truth.all() else Tile.SOME)
    assert mask.last_reader(k).tolist() == [j + window - 1 for j in columns]
    (piece,) = mask.intervals(q)
    assert torch.equal((piece.first[:, None] <= k) & (k < piece.stop[:, None]), truth)


@pytest.mark.parametrize("spec", [mask for mask in MASKS if mask != "block_causal:4"])
def test_under_a_causal_mask_it_is_the_window(spec):
    """As exact and as cheap: the same plan, the same last readers."""
    mask, keys = parse_mask(spec), torch.arange(40)
    for lengths in (Lengths(0, 300, 0, 300), Lengths(290, 10, 100, 200)):
        one, other = (plan_of(mask & window, lengths) for window in (OwnWindow(50), SlidingWindow(50)))
        assert (one.touched, one.cost, list(map(str, one.parts))) == (
            other.touched,
            other.cost,
            list(map(str, other.parts)),
        )
    one, other = mask & OwnWindow(50), mask & SlidingWindow(50)
    assert torch.equal(one.last_reader(keys), other.last_reader(keys)) and one.lookahead == other.lookahead == 0
    assert torch.equal(one.dense(90), matrix(other, range(90), range(90)))
