"""Calls that are running: threads, exceptions, interrupts and models inside models."""

import gc
import threading
import weakref

import pytest
import torch

from hf_masking import patch_model

from .families import build, tokens
from .test_api import MASK, logits


def test_threads_and_interleaved_models():
    models = [patch_model(build("llama"), mask) for mask in ("window:2", "strided:3", MASK)]
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[0, :6] = 0
    expected = [model(tokens(2, 17), attention_mask=padding).logits for model in models]
    wrong = []

    def run(index):
        for _ in range(30):
            if not torch.equal(models[index](tokens(2, 17), attention_mask=padding).logits, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_exception_in_a_forward_leaves_the_next_one_right():
    model = patch_model(build("llama"), MASK)
    before = logits(model)
    with pytest.raises((ValueError, IndexError)):
        model(torch.tensor([[10**6]]))
    with pytest.raises(ValueError, match="attention_mask must cover"):
        model(tokens(2, 5), attention_mask=torch.ones(2, 3))
    assert torch.equal(logits(model), before)


def test_a_patched_model_is_collected():
    model = patch_model(build("llama"), MASK)
    reference = weakref.ref(model)
    logits(model)
    del model
    gc.collect()
    assert reference() is None


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_an_interrupted_forward_leaves_nothing_behind():
    """torch runs the hooks that clean up after an Exception, and not after Ctrl-C in a notebook."""
    model, other = patch_model(build("llama"), MASK), patch_model(build("qwen3"), MASK)
    before = logits(model), logits(other)
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[:, :9] = 0
    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(tokens(2, 17), attention_mask=padding)
    hook.remove()
    assert torch.equal(logits(other), before[1])
    assert torch.equal(logits(model), before[0])


def test_a_part_of_an_interrupted_model_reads_its_own_batch():
    """Ctrl-C in the language-model head: the model that holds the base model was running, and is not any more."""
    model = patch_model(build("llama"), MASK, check=False)
    expected = model.model(tokens(2, 17)).last_hidden_state
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[:, :9] = 0
    hook = model.lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:  # with its frames, as a notebook keeps them
        model(tokens(2, 17), attention_mask=padding)
    hook.remove()
    assert torch.equal(model.model(tokens(2, 17)).last_hidden_state, expected)
    assert kept.traceback


def generate_with_a_static_cache(model, ids):
    """Transformers asks for the mask of a static cache before any forward of the model begins."""
    return model.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static", disable_compile=True)


def compiled_base_model(model, ids):
    return torch.compile(model.model, backend="eager")(ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize("run", [generate_with_a_static_cache, compiled_base_model])
@torch.no_grad()
def test_what_runs_after_an_interrupt_reads_its_own_batch(run):
    model = patch_model(build("llama"), MASK, check=False)
    ids = tokens(2, 17)
    expected = run(model, ids)
    torch.compiler.reset()
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[:, :9] = 0
    hook = model.lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids, attention_mask=padding, use_cache=False)
    hook.remove()
    torch.testing.assert_close(run(model, ids), expected)


def test_another_model_ends_what_an_interrupt_has_left():
    model, other = patch_model(build("llama"), MASK, check=False), patch_model(build("qwen3"), MASK, check=False)
    model.lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(tokens(2, 17))
    reference = weakref.ref(model)
    del model
    logits(other)
    gc.collect()
    assert reference() is None


def test_a_model_inside_another_ones_forward_has_its_own_batch():
    student, teacher = patch_model(build("llama"), MASK), patch_model(build("qwen3"), MASK)
    expected, seen = logits(teacher), []
    student.model.layers[0].register_forward_pre_hook(lambda *arguments: seen.append(logits(teacher)) or None)
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[:, :9] = 0
    student(tokens(2, 17), attention_mask=padding)
    assert torch.equal(seen[0], expected)
