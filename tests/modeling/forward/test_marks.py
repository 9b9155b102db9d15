"""Prefixes and marked spans against a dense mask built pair by pair, and what is refused."""

import pytest
import torch
from transformers import DynamicCache

from hf_masking import parse_mask
from hf_masking.modeling import cache_with_prefix, effective_mask, patch_model
from hf_masking.training import labels_for_prefix_lm

from ..families import CONFIGS, build, own_windows, tokens
from ..test_equals_dense import give_layers_a_dense_mask

LENGTH = 17
LENGTHS = [0, 5, 11, LENGTH]
ATTENTION_MASK = torch.ones(4, LENGTH, dtype=torch.long)
ATTENTION_MASK[1, :4] = 0
ATTENTION_MASK[2, 6:8] = 0


def positions(attention_mask):
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def dense(rest, real, spans, windows):
    """``[B, 1, N, N]``, a loop over pairs: bidirectional inside a span, else the causal mask ``rest``."""
    rows, columns = [], range(LENGTH)
    allowed = parse_mask(rest).dense(LENGTH).tolist()
    for row, marked in zip(real.tolist(), spans, strict=True):
        place = [sum(row[:column]) for column in columns]

        def pair(i, j, row=row, marked=marked, place=place):
            inside = marked[i] == marked[j] >= 0 or allowed[place[i]][place[j]]
            return bool(row[i] and row[j] and inside and (windows is None or place[i] - place[j] < windows))

        rows.append([[pair(i, j) for j in columns] for i in columns])
    return torch.tensor(rows)[:, None]


def spans_of_prefixes(real, lengths):
    counts = real.cumsum(-1)
    return [
        [0 if real[r, c] and counts[r, c] <= length else -1 for c in range(real.shape[1])]
        for r, length in enumerate(lengths)
    ]


def stock_logits(family, rest, spans, inputs):
    model = build(family)
    model.set_attn_implementation("eager")
    lowest = torch.finfo(torch.float32).min
    allowed = [dense(rest, ATTENTION_MASK, spans, window) for window in own_windows(family)]
    give_layers_a_dense_mask(model, [torch.zeros(()).where(mask, lowest) for mask in allowed])
    return model(inputs, position_ids=positions(ATTENTION_MASK), use_cache=False).logits


@pytest.mark.parametrize("rest", ["causal", "window:4", "window:3|sinks:1"])
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_prefixes_row_by_row(family, rest):
    inputs, real = tokens(4, LENGTH), ATTENTION_MASK.bool()
    lengths = [min(length, int(count)) for length, count in zip(LENGTHS, ATTENTION_MASK.sum(-1), strict=True)]
    expected = stock_logits(family, rest, spans_of_prefixes(ATTENTION_MASK, lengths), inputs)
    model = patch_model(build(family), f"prefix|{rest}")
    arguments = {"attention_mask": ATTENTION_MASK, "position_ids": positions(ATTENTION_MASK)}
    for given in (lengths, torch.tensor(lengths)):
        logits = model(inputs, prefix_lengths=given, **arguments).logits
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_marked_spans(family):
    inputs, real = tokens(4, LENGTH), ATTENTION_MASK.bool()
    ids = torch.full((4, LENGTH), -1)
    ids[0, 2:6], ids[0, 9:11], ids[1, 7:12], ids[2, 4:10], ids[3, 0:3] = 7, 3, 0, 1, 2
    ids = ids.where(real, -1)
    expected = stock_logits(family, "window:4|sinks:1", ids.tolist(), inputs)
    model = patch_model(build(family), "spans|window:4|sinks:1")
    logits = model(inputs, attention_mask=ATTENTION_MASK, position_ids=positions(ATTENTION_MASK), span_ids=ids).logits
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-4)


@torch.no_grad()
def test_spans_of_packed_documents():
    model = patch_model(build("llama"), "prefix|window:3", check=False)
    one, two = tokens(1, 9), tokens(1, 8, seed=6)
    packed = model(
        torch.cat([one, two], 1),
        document_ids=torch.tensor([[0] * 9 + [1] * 8]),
        span_ids=torch.tensor([[0] * 4 + [-1] * 5 + [1] * 6 + [-1] * 2]),
    ).logits
    alone = [model(text, prefix_lengths=[p]).logits for text, p in ((one, 4), (two, 6))]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-4)


def test_the_effective_mask_shows_the_prefix():
    model = patch_model(build("llama"), "prefix|causal", check=False)
    (first, _) = effective_mask(model, input_ids=tokens(1, 5), prefix_lengths=[3])
    assert first[0].int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_gradients_and_labels():
    model = patch_model(build("llama"), "prefix|causal", check=False)
    inputs, lengths = tokens(2, 9), [4, 6]
    labels = labels_for_prefix_lm(lengths, inputs)
    assert labels.tolist() == [[-100] * p + row[p:] for p, row in zip(lengths, inputs.tolist(), strict=True)]
    model(inputs, prefix_lengths=lengths, labels=labels).loss.backward()
    for wrong in (inputs, labels_for_prefix_lm([3, 6], inputs)):
        with pytest.raises(ValueError, match="labels inside a prefix or a marked span are visible to the rows that"):
            model(inputs, prefix_lengths=lengths, labels=wrong)
    padded = labels_for_prefix_lm([2], tokens(1, 6), torch.tensor([[0, 0, 1, 1, 1, 0]]))
    assert (padded != -100).tolist() == [[False, False, False, False, True, False]]


def write(model, inputs, **options):
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "output_logits": True}
    return model.generate(inputs, return_dict_in_generate=True, **settings, **options)


@pytest.mark.parametrize("mask", ["prefix|causal", "prefix|window:4"])
@torch.no_grad()
def test_prefixes_of_ones_own_in_generate(mask):
    model = patch_model(build("llama"), mask, check=False)
    inputs, lengths = tokens(2, 9), [3, 7]
    written = write(model, inputs, past_key_values=cache_with_prefix(model, lengths))
    again = model(written.sequences, prefix_lengths=lengths, use_cache=False).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(written.logits, 1), again, rtol=0, atol=1e-4)
    assert torch.equal(again.argmax(-1), written.sequences[:, 9:])
    beams = write(model, inputs, past_key_values=cache_with_prefix(model, lengths), num_beams=3, output_scores=True)
    logits = model(beams.sequences, prefix_lengths=lengths, use_cache=False).logits[:, 8:-1].log_softmax(-1)
    scores = logits.gather(-1, beams.sequences[:, 9:, None]).mean((1, 2))
    torch.testing.assert_close(beams.sequences_scores, scores, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_is_refused():
    model = patch_model(build("llama"), "prefix|causal", check=False)
    inputs = tokens(1, 8)
    for call, message in [
        (lambda: model(inputs), "'prefix' needs to be told where its tokens are: pass prefix_lengths="),
        (lambda: write(model, inputs, use_cache=False), "needs to be told where its tokens are"),
        (lambda: write(model, inputs, cache_implementation="static", disable_compile=True), "needs to be told"),
        (lambda: write(model, inputs, prefill_chunk_size=7), "where a chunk would pass for the prompt"),
        (lambda: write(model, inputs, prefill_chunk_size=3), "where a chunk would pass for the prompt"),
        (
            lambda: write(model, inputs, prefill_chunk_size=3, past_key_values=cache_with_prefix(model, [4])),
            r"the prefixes have \[4\] tokens and the first call has \[3\]; a prefix must come in one call",
        ),
        (lambda: model(inputs, prefix_lengths=[9]), r"the prefixes have \[9\] tokens and the first call has \[8\]"),
        (lambda: model(inputs, prefix_lengths=[1, 2]), "prefix_lengths must be 1 integers, one per row"),
        (lambda: model(inputs, prefix_lengths=[1.5]), "prefix_lengths must be 1 integers, one per row"),
        (lambda: model(inputs, prefix_lengths=[1], span_ids=inputs), "prefix_lengths and span_ids are both given"),
        (lambda: model(inputs, span_ids=torch.tensor([[0, 1, 0, -1, -1, -1, -1, -1]])), "must be consecutive"),
        (lambda: model(inputs, span_ids=inputs[:, :3]), r"span_ids must be integers of shape \[1, 8\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    held = model(inputs, prefix_lengths=[5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="a cache holds its prefix since its first call"):
        model(inputs, prefix_lengths=[5], past_key_values=held)
    with pytest.raises(ValueError, match="cannot be cropped to 4: that would part a prefix of 5"):
        held.crop(-4)
    with pytest.raises(ValueError, match="a marked span starts in the cache and continues in new tokens"):
        model(tokens(1, 2), span_ids=torch.tensor([[-1] * 7 + [0, 0, -1]]), past_key_values=held)
    causal = patch_model(build("llama"), "causal", check=False)
    with pytest.raises(ValueError, match="prefix_lengths is for a mask that needs it"):
        causal(inputs, prefix_lengths=[1])
    with pytest.raises(ValueError, match="prefix_lengths is for a mask that needs it"):
        cache_with_prefix(causal, [1])
    with pytest.raises(ValueError, match="give one of lengths and span_ids"):
        cache_with_prefix(model)


@torch.no_grad()
def test_spans_said_again_while_decoding_change_nothing():
    """The cache has evicted a part of the first span by then; a second one comes with new tokens."""
    model, inputs = patch_model(build("llama"), "spans|summary:4,1|window:2", check=False), tokens(2, 112)
    ids = torch.full((2, 112), -1)
    ids[:, 3:17], ids[:, 103:107] = 0, 1
    whole = model(inputs, span_ids=ids, use_cache=False).logits
    for again in (False, True):
        cache, logits = None, []
        for columns in (slice(0, 100), slice(100, 101), slice(101, 102), slice(102, 110), slice(110, 112)):
            marks = again or columns.start in (0, 102)
            given = {"span_ids": ids[:, : columns.stop]} if marks else {}
            output = model(inputs[:, columns], past_key_values=cache, use_cache=True, **given)
            cache = output.past_key_values
            logits.append(output.logits)
        assert len(cache.layers[0].columns) < 90
        torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_spans_in_generate():
    """The caller must mark spans; unlike a prefix, no prompt is a span by itself."""
    model, inputs = patch_model(build("llama"), "spans|window:4|sinks:1", check=False), tokens(2, 9)
    with pytest.raises(ValueError, match="'spans' needs to be told where its tokens are"):
        write(model, inputs)
    ids = torch.tensor([[-1, 3, 3, 3, -1, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0, -1, -1]])
    written = write(model, inputs, past_key_values=cache_with_prefix(model, span_ids=ids))
    marked = torch.nn.functional.pad(ids, (0, 12), value=-1)
    again = model(written.sequences, span_ids=marked, use_cache=False).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(written.logits, 1), again, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_prompt_is_the_prefix_whatever_else_generate_does():
    model = patch_model(build("llama"), "prefix|window:4", check=False)
    inputs = tokens(1, 9)
    for options in ({"past_key_values": DynamicCache()}, {"prompt_lookup_num_tokens": 3}):
        written = write(model, inputs, **options)
        again = model(written.sequences, prefix_lengths=[9], use_cache=False).logits[:, 8:-1]
        torch.testing.assert_close(torch.stack(written.logits, 1), again, rtol=0, atol=1e-4)
