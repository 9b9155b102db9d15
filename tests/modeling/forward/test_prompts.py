"""Prompt marks against a dense mask built pair by pair, their caches, and what is refused."""

import pytest
import torch
from transformers import DynamicCache

from hf_masking.modeling import cache_with_prefix, patch_model
from hf_masking.modeling.caching import eviction
from hf_masking.training import labels_for_prompt

from ..families import CONFIGS, build, own_windows, tokens
from ..test_equals_dense import LAYOUTS, LENGTH, PAD, give_layers_a_dense_mask, positions

# Of each mask the pairs that it allows, as comparisons of single integers: query i, key j, p tokens of a prompt.
MASKS = {
    "prompt|window:4": lambda i, j, p: j < p or i - j < 4,
    "window:3|sinks:1|after_prompt": lambda i, j, p: i >= p or i - j < 3 or j < 1,
    "causal-prompt|window:1|sinks:2": lambda i, j, p: j >= p or i == j or j < 2,
    "after_prompt&strided:2|window:2": lambda i, j, p: (i >= p and (i - j) % 2 == 0) or i - j < 2,
}
PROMPTS = [0, 4, 9, LENGTH]


def positions_of(row):
    return [row[:column].count(row[column]) for column in range(len(row))]


def lengths_of(ids):
    """A prompt for each document: the lengths go round, as far as there are tokens."""
    return [{d: min(PROMPTS[(row + d) % 4], line.count(d)) for d in set(line) - {PAD}} for row, line in enumerate(ids)]


def dense(pairs, window, ids, lengths):
    """``[B, 1, N, N]``, pair by pair."""
    rows = []
    for line, by_document in zip(ids, lengths, strict=True):
        place = positions_of(line)

        def pair(a, b, line=line, by_document=by_document, place=place):
            i, j = place[a], place[b]
            near = window is None or i - j < window
            return line[a] == line[b] != PAD and j <= i and near and pairs(i, j, by_document[line[a]])

        rows.append([[pair(a, b) for b in range(len(line))] for a in range(len(line))])
    return torch.tensor(rows)[:, None]


def inside(ids, lengths):
    """``prompt_mask``: the first tokens of each document."""
    return torch.tensor(
        [
            [d != PAD and place < by[d] for d, place in zip(line, positions_of(line), strict=True)]
            for line, by in zip(ids, lengths, strict=True)
        ]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_and_gradients_are_those_of_a_dense_mask(family, layout):
    ids = LAYOUTS[layout]
    lengths, inputs, real = lengths_of(ids), tokens(len(ids), LENGTH), torch.tensor(ids) != PAD
    given = {"position_ids": positions(ids), "attention_mask": real.long(), "use_cache": False}
    marks = {"prompt_mask": inside(ids, lengths)}
    if layout != "packed":
        marks = {"prompt_lengths": [by_document[0] for by_document in lengths]}
    weight = torch.randn(len(ids), LENGTH, 1, generator=torch.Generator().manual_seed(1)) * real[..., None]
    for spec, pairs in MASKS.items():
        stock, model = build(family), patch_model(build(family), spec, check=False)
        stock.set_attn_implementation("eager")
        allowed = [dense(pairs, window, ids, lengths) for window in own_windows(family)]
        give_layers_a_dense_mask(stock, [torch.zeros(()).where(one, torch.finfo(torch.float32).min) for one in allowed])
        expected = stock(input_ids=inputs, position_ids=given["position_ids"], use_cache=False).logits
        logits = model(input_ids=inputs, **given, **marks).logits
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-4)
        (logits * weight).sum().backward()
        (expected * weight).sum().backward()
        for one, other in zip(model.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4 * float(other.grad.abs().max() + 1))


@pytest.mark.parametrize("marks", ["prompt_lengths", "prompt_mask"])
def test_training_with_labels_checkpointing_and_layers(marks):
    """A prompt by rows is one by tokens, whether layers are run again in the backward pass or not."""
    inputs, lengths, losses = tokens(2, 20), [12, 5], []
    labels = labels_for_prompt(lengths, inputs)
    assert labels.tolist() == [[-100] * p + row[p:] for p, row in zip(lengths, inputs.tolist(), strict=True)]
    for checkpointed in (False, True):
        model = patch_model(build("llama"), "window:3|after_prompt", layers={0: "prompt|window:2"}, check=False).train()
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        given = {"prompt_lengths": lengths} if marks == "prompt_lengths" else {"prompt_mask": labels == -100}
        loss = model(inputs, labels=labels, use_cache=False, **given).loss
        loss.backward()
        losses.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    "spec",
    ["prompt|top_blocks:block=4,k=2", "relevance:rank=2&(prompt|window:4)", "heads[prompt|window:3; after_prompt]"],
)
@torch.no_grad()
def test_a_prompt_that_comes_with_the_batch_is_one_that_the_mask_fixes(spec):
    """Under adaptive masks and by head, in one forward and token by token, with prompts of equal and unequal length."""
    inputs = tokens(2, 40)
    for lengths in ([11, 11], [11, 17]):
        alone = []
        for row, length in enumerate(lengths):
            fixed = spec.replace("after_prompt", f"after_prompt:{length}").replace("prompt|", f"prompt:{length}|")
            model = patch_model(build("llama"), fixed, check=False)
            alone.append(model(inputs[row : row + 1], use_cache=False).logits)
        model = patch_model(build("llama"), spec, check=False)
        whole = model(inputs, prompt_lengths=lengths, use_cache=False).logits
        torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-4)
        cache, logits = DynamicCache(config=model.config), []
        for index, piece in enumerate(inputs.split([25, *[1] * 15], dim=1)):
            marks = {} if index else {"prompt_lengths": lengths}
            logits.append(model(piece, past_key_values=cache, **marks).logits)
        torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=1e-4)


def write(model, inputs, **options):
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "output_logits": True}
    return model.generate(inputs, return_dict_in_generate=True, **settings | options)


@pytest.mark.parametrize("lag", [0, 64])
@torch.no_grad()
def test_a_cache_retains_the_prompt_and_a_window(monkeypatch, lag):
    """As of ``lag`` tokens ago, which can be taken back, and with room for one more; under `after_prompt` all."""
    monkeypatch.setattr(eviction, "ROLLBACK", lag)
    prompt, window, seen = 20, 8, 120
    model = patch_model(build("llama"), f"prompt|window:{window}", check=False)
    cache = write(model, tokens(2, prompt), max_new_tokens=seen + 1 - prompt).past_key_values
    for layer in cache.layers:
        after = len(layer.columns) - prompt
        assert layer.columns.tolist() == [*range(prompt), *range(seen - after, seen)]
        assert after - window - lag in (0, 1)
    model = patch_model(model, f"window:{window}|after_prompt", check=False)
    cache = write(model, tokens(2, prompt), max_new_tokens=seen + 1 - prompt).past_key_values
    assert [len(layer.columns) for layer in cache.layers] == [seen] * 2


@torch.no_grad()
def test_the_rows_of_a_cache_keep_their_prompts(monkeypatch):
    """Whatever becomes of the rows: what a cache evicts, and what its tokens see, follows the prompt of each."""
    monkeypatch.setattr(eviction, "ROLLBACK", 4)
    model = patch_model(build("llama"), "(prompt-sinks:3)|window:3", layers={1: "window:2|after_prompt"}, check=False)
    inputs, lengths = tokens(2, 60), torch.tensor([30, 9])
    for rows, change in [
        ([1, 0], lambda cache: cache.reorder_cache(torch.tensor([1, 0]))),
        ([0, 0, 1, 1], lambda cache: cache.batch_repeat_interleave(2)),
        ([1], lambda cache: cache.batch_select_indices(torch.tensor([1]))),
    ]:
        cache = DynamicCache(config=model.config)
        model(inputs[:, :25], past_key_values=cache, prompt_lengths=lengths)
        for column in range(25, 45):
            model(inputs[:, column : column + 1], past_key_values=cache)
        change(cache)
        tail = tokens(len(rows), 60, seed=3)[:, 45:]
        logits = [model(one, past_key_values=cache).logits for one in tail.split(1, dim=1)]
        whole = torch.cat([inputs[rows, :45], tail], 1)
        expected = model(whole, prompt_lengths=lengths[rows], use_cache=False).logits[:, 45:]
        torch.testing.assert_close(torch.cat(logits, 1), expected, rtol=0, atol=1e-4)
        assert len(cache.layers[0].columns) < (45 if 0 in rows else 25)


@torch.no_grad()
def test_prompts_of_ones_own_in_generate():
    """A cache that knows them: in chunked prefill, under beams, and where a part of the text is the prompt."""
    for spec in ("prompt|window:3", "window:2|after_prompt", "prefix|prompt|window:2"):
        model, inputs, lengths = patch_model(build("llama"), spec, check=False), tokens(2, 9), [4, 7]
        again = {"prompt_lengths": lengths} | ({"prefix_lengths": [3, 2]} if "prefix" in spec else {})
        for options in ({}, {"prefill_chunk_size": 3}, {"num_beams": 3, "output_scores": True}):
            cache = cache_with_prefix(model, again.get("prefix_lengths"), prompt_lengths=torch.tensor(lengths))
            written = write(model, inputs, past_key_values=cache, **options)
            logits = model(written.sequences, use_cache=False, **again).logits[:, 8:-1]
            if "num_beams" in options:
                scores = logits.log_softmax(-1).gather(-1, written.sequences[:, 9:, None]).mean((1, 2))
                torch.testing.assert_close(written.sequences_scores, scores, rtol=0, atol=1e-4)
            else:
                torch.testing.assert_close(torch.stack(written.logits, 1), logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_prefix_and_a_prompt_are_the_same_tokens_in_generate():
    model, inputs = patch_model(build("llama"), "prefix|prompt|window:3", check=False), tokens(1, 9)
    written = write(model, inputs)
    logits = model(written.sequences, prefix_lengths=[9], prompt_lengths=[9], use_cache=False).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(written.logits, 1), logits, rtol=0, atol=1e-4)
    for given, message in [
        ({"prefix_lengths": [9]}, "'prompt' needs to be told how many tokens the prompt has"),
        ({"prompt_lengths": [9]}, "'prefix' needs to be told where its tokens are"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(inputs, **given)


@torch.no_grad()
def test_packed_documents_in_a_cache():
    """Each call says what is a prompt, as it says which documents there are."""
    model, inputs = patch_model(build("llama"), "prompt|window:2", check=False), tokens(1, 14)
    documents = torch.tensor([[0] * 5 + [1] * 9])
    marked = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    whole = model(inputs, document_ids=documents, prompt_mask=marked, use_cache=False).logits
    cache, logits = DynamicCache(config=model.config), []
    for columns in (slice(0, 11), slice(11, 12), slice(12, 14)):
        given = {"document_ids": documents[:, : columns.stop], "prompt_mask": marked[:, : columns.stop]}
        logits.append(model(inputs[:, columns], past_key_values=cache, **given).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="'prompt' needs to be told how many tokens"):
        model(inputs[:, :1], past_key_values=cache, document_ids=torch.nn.functional.pad(documents, (0, 1), value=1))


@torch.no_grad()
def test_lengths_said_again_while_decoding_change_nothing():
    model, inputs = patch_model(build("llama"), "prompt|window:2", check=False), tokens(2, 12)
    whole = model(inputs, prompt_lengths=[4, 6], use_cache=False).logits
    first = model(inputs[:, :3], prompt_lengths=[4, 6])  # the prompts go on in the next call
    inside = torch.arange(12) < torch.tensor([[4], [6]])
    second = model(inputs[:, 3:9], prompt_lengths=[4, 6], past_key_values=first.past_key_values)
    third = model(inputs[:, 9:], prompt_mask=inside, past_key_values=second.past_key_values)
    logits = torch.cat([one.logits for one in (first, second, third)], 1)
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"filled for prompts of \[4, 6\] tokens, and now they are \[4, 7\]; leave them"
    ):
        model(inputs[:, :1], prompt_lengths=[4, 7], past_key_values=third.past_key_values)


@torch.no_grad()
def test_what_is_refused():
    model, inputs = patch_model(build("llama"), "prompt|window:4", check=False), tokens(1, 8)
    packed = {"document_ids": torch.tensor([[0] * 4 + [1] * 4])}
    hole = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0]])
    for call, message in [
        (lambda: model(inputs), "'prompt' needs to be told how many tokens the prompt has: pass prompt_lengths="),
        (lambda: write(model, inputs, use_cache=False), "needs to be told how many tokens the prompt has"),
        (lambda: write(model, inputs, cache_implementation="static", disable_compile=True), "such as 'prompt:17'"),
        (lambda: write(model, inputs, prefill_chunk_size=3), r"cache_with_prefix\(model, prompt_lengths=lengths\)"),
        (lambda: model(inputs, prompt_lengths=[1, 2]), "prompt_lengths must be 1 integers, one per row"),
        (lambda: model(inputs, prompt_lengths=[-1]), r"prompt_lengths must be at least 0, got \[-1\]"),
        (lambda: model(inputs, prompt_lengths=[1], prompt_mask=hole), "prompt_lengths and prompt_mask are both given"),
        (lambda: model(inputs, prompt_mask=hole), "prompt_mask must be True for the first tokens of a document and"),
        (lambda: model(inputs, prompt_mask=hole[:, :3]), r"prompt_mask must be integers of shape \[1, 8\]"),
        (lambda: model(inputs, prompt_lengths=[3], **packed), r"pass prompt_mask of shape \[1, 8\]"),
        (lambda: model(inputs, prefix_lengths=[3]), "prefix_lengths is for a mask that needs it"),
        (lambda: cache_with_prefix(model, [3]), "prefix_lengths is for a mask that needs it"),
        (lambda: cache_with_prefix(model), "give one of lengths and span_ids, or prompt_lengths, or both"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    causal = patch_model(build("llama"), "causal", check=False)
    for given in ({"prompt_lengths": [1]}, {"prompt_mask": hole}):
        with pytest.raises(ValueError, match="is for a mask that needs it, such as patch_model"):
            causal(inputs, **given)
    with pytest.raises(ValueError, match="expected 2 prompt_lengths, one per row"):
        labels_for_prompt([1], tokens(2, 3))
