"""Patched models under `torch.compile`."""

import logging
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from transformers import CompileConfig, DynamicCache, LlamaForCausalLM, StaticCache

from hf_masking import patch_model, unpatch_model
from hf_masking.attention import blockwise
from hf_masking.masks import SlidingWindow

from .families import CONFIGS, build, tokens
from .test_adaptive import model_of

SPEC = "window:4|sinks:1"
LONG = 140  # more pairs than a graph computes itself


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def one_graph(model, **options):
    """The forward as one graph, hooks included: around the module itself these would be graphs of their own."""
    return torch.compile(lambda *args, **kwargs: model(*args, **kwargs), fullgraph=True, **options)


def padding(rows, length):
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1, :3] = 0
    return mask


@dataclass(frozen=True)
class HalfWindow(SlidingWindow):
    """Prints as a window does, and is another mask."""

    def strips(self):
        return SlidingWindow(self.window // 2).strips()


@pytest.mark.parametrize("family", ["llama", "mistral"])
@torch.no_grad()
def test_a_model_is_compiled_with_the_mask_that_it_has(family):
    """Patched anew, it runs another graph; two masks may print alike."""
    model, ids = patch_model(build(family), HalfWindow(8), check=False), tokens(2, 20)
    compiled = one_graph(model, backend="eager")
    for mask in (HalfWindow(8), SlidingWindow(8), "window:8|sinks:1", HalfWindow(8)):
        patch_model(unpatch_model(model), mask, check=False)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@torch.no_grad()
def test_layers_that_are_compiled_one_by_one_share_a_graph():
    """The compiler gives up after 8 graphs of one function."""
    config = type(CONFIGS["llama"])(**CONFIGS["llama"].to_dict() | {"num_hidden_layers": 12})
    model, ids = patch_model(LlamaForCausalLM(config).eval(), SPEC, check=False), tokens(2, 20)
    expected = model(ids, use_cache=False).logits
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_generate_as_one_graph(family):
    """Do what Transformers' `test_generate_compile_model_forward_fullgraph` does, and pad."""
    model = patch_model(build(family), SPEC, check=False)
    compiled = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
    compiled._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": compiled}
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    with mock.patch.object(torch, "compile", wraps=torch.compile) as compiles:
        for seed, mask in ((1, None), (2, None), (3, padding(2, 9))):
            prompt = {"input_ids": tokens(2, 9, seed), "attention_mask": mask}
            expected = model.generate(**prompt, **settings)
            with torch.compiler.set_stance("default" if seed == 1 else "fail_on_recompile"):
                output = model.generate(**prompt, **static, **settings)
            assert torch.equal(output.sequences, expected.sequences)
            torch.testing.assert_close(output.scores, expected.scores, rtol=0, atol=1e-4)
    assert compiles.call_args.kwargs["fullgraph"]


@pytest.mark.parametrize(("family", "length"), [("gpt2", 20), ("mistral", LONG)])
def test_training_as_one_graph(family, length, caplog):
    model = patch_model(build(family, num_hidden_layers=1, max_position_embeddings=256), SPEC, check=False)
    batch = {"attention_mask": padding(2, length), "use_cache": False}
    real = batch["attention_mask"][..., None]
    caplog.set_level(logging.WARNING)
    gradients = []
    with mock.patch.object(blockwise, "forward", wraps=blockwise.forward) as planned:
        for forward in (model, one_graph(model, backend="aot_eager")):
            planned.reset_mock()
            model.zero_grad()
            (forward(tokens(2, length), **batch).logits * real).square().mean().backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert planned.called == (length == LONG), "a long text is planned, a short one is dense"
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert not [record for record in caplog.records if record.name.startswith("torch._dynamo")]


def test_other_lengths_are_one_graph_more():
    model, calls = patch_model(build("llama", num_hidden_layers=1), SPEC, check=False), []
    compiled = one_graph(model, backend=lambda graph, _: calls.append(graph) or graph)
    with torch.no_grad():
        for length in (20, 25, 40):
            ids = tokens(2, length)
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
    assert len(calls) == 2


@torch.no_grad()
def test_packed_documents_as_one_graph():
    model = patch_model(build("llama", num_hidden_layers=1), SPEC, check=False)
    ids = torch.tensor([[0] * 7 + [1] * 13, [0] * 15 + [1] * 5])
    position_ids = torch.tensor([[*range(7), *range(13)], [*range(15), *range(5)]])
    compiled = one_graph(model, backend="eager")
    for named in ({"document_ids": ids * 10**12, "position_ids": position_ids}, {"position_ids": position_ids}):
        outputs = [forward(tokens(2, 20), use_cache=False, **named).logits for forward in (compiled, model)]
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_loop_over_a_static_cache_is_one_graph():
    model, ids = patch_model(build("llama", num_hidden_layers=1), SPEC, check=False), tokens(2, 13)
    cache, compiled = StaticCache(config=model.config, max_cache_len=16), one_graph(model, backend="eager")
    logits = [model(ids[:, :10], past_key_values=cache).logits]
    for place in range(10, 13):
        position = torch.full((2, 1), place)
        logits.append(compiled(ids[:, place : place + 1].clone(), position_ids=position, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(ids, use_cache=False).logits, rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="position_ids start a new document"):
        compiled(ids[:, :1].clone(), position_ids=torch.zeros(2, 1, dtype=torch.long), past_key_values=cache)


@torch.no_grad()
def test_a_graph_refuses_a_static_cache_that_was_filled_without_the_mask():
    model, ids = build("llama", num_hidden_layers=1), tokens(2, 10)
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(ids, past_key_values=cache)
    compiled = one_graph(patch_model(model, SPEC, check=False), backend="eager")
    with pytest.raises(RuntimeError, match="tokens that no patched model has read"):
        compiled(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("compiled_first", [True, False])
@torch.no_grad()
def test_a_cache_goes_between_compiled_and_uncompiled_calls(compiled_first):
    """A cache that was filled uncompiled evicts, which leaves the graph; one that was filled compiled keeps all."""
    model, ids = patch_model(build("llama", num_hidden_layers=1), SPEC, check=False), tokens(2, 83)
    calls = [torch.compile(model, backend="eager"), model][:: 1 if compiled_first else -1]
    cache = DynamicCache(config=model.config)
    logits = [calls[0](ids[:, :80], past_key_values=cache).logits]
    logits += [calls[1](one, past_key_values=cache).logits for one in ids[:, 80:].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids, use_cache=False).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_adaptive_mask_reads_cached_keys():
    model, ids = model_of("llama", "relevance:rank=3", num_hidden_layers=1), tokens(1, 19)
    compiled, cache = torch.compile(model, backend="eager"), DynamicCache(config=model.config)
    logits = [compiled(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split([12, 6, 1], dim=1)]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids, use_cache=False).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_another_mask_is_another_graph():
    model, ids = build("llama", num_hidden_layers=1), tokens(2, 20)
    compiled, plain = one_graph(model, backend="eager"), model(ids).logits
    seen = []
    for spec in (SPEC, "causal-(window:6-window:2)", None):
        patch_model(model, spec, check=False) if spec else unpatch_model(model)
        seen.append(compiled(ids).logits)
        torch.testing.assert_close(seen[-1], model(ids).logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[2], plain, rtol=0, atol=1e-4)
    assert not any(torch.allclose(seen[one], seen[other], atol=0.1) for one, other in ((0, 1), (0, 2), (1, 2)))


@torch.no_grad()
def test_what_leaves_the_graph_says_why():
    ids = tokens(1, 20)
    with pytest.raises(RuntimeError, match="an adaptive mask"):
        one_graph(model_of("llama", "relevance:rank=2", num_hidden_layers=1), backend="eager")(ids, use_cache=False)
    model = patch_model(build("llama", num_hidden_layers=1), "prefix|causal", check=False)
    with pytest.raises(RuntimeError, match="prefix_lengths, span_ids"):
        one_graph(model, backend="eager")(ids, prefix_lengths=torch.tensor([3]), use_cache=False)
    prefixed = torch.compile(model, backend="eager")(ids, prefix_lengths=torch.tensor([3]), use_cache=False).logits
    torch.testing.assert_close(prefixed, model(ids, prefix_lengths=torch.tensor([3]), use_cache=False).logits)


@torch.no_grad()
def test_prompts_are_read_beside_the_graph():
    """What a forward with these lengths computes is the same, compiled or not, and so is a cache that is told again."""
    ids, lengths = tokens(2, 24), torch.tensor([5, 9])
    model = patch_model(build("llama", num_hidden_layers=1), "prompt|window:3", check=False)
    whole = model(ids, prompt_lengths=lengths, use_cache=False).logits
    with pytest.raises(RuntimeError, match="prompt_lengths, prompt_mask"):
        one_graph(model, backend="eager")(ids, prompt_lengths=lengths, use_cache=False)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(ids, prompt_lengths=lengths, use_cache=False).logits, whole)
    first = compiled(ids[:, :20], prompt_lengths=lengths, use_cache=True)
    second = compiled(ids[:, 20:], prompt_lengths=lengths, past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=0, atol=1e-4)
