"""Every mode of generation in half precision: right masks pass, though rounding decides ties, and faults do not."""

import pytest
import torch

from hf_masking import check_generation
from hf_masking.modeling import patch_model
from hf_masking.modeling.caching import eviction
from hf_masking.modeling.checking import generation
from hf_masking.modeling.checking.generation import MODES
from hf_masking.modeling.checking.rounding import TOLERANCES, precision

from ..families import build
from .test_generation import FAULTS, assert_passes


def model_of(family, mask, dtype):
    return patch_model(build(family, max_position_embeddings=512).to(dtype), mask, check=False)


@pytest.mark.parametrize(
    ("family", "mask", "dtype"),
    [
        ("llama", "strided:16|window:16", torch.bfloat16),
        ("llama", "top_blocks:block=16,k=4", torch.bfloat16),
        ("gpt2", "window:64|sinks:4", torch.float16),
        ("qwen3", "log_sparse", torch.bfloat16),
        ("gemma3", "strided:16|window:16", torch.bfloat16),
    ],
)
def test_every_mode_passes(family, mask, dtype):
    assert_passes(check_generation(model_of(family, mask, dtype), lengths=[41, 144]), family)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["strided:16|window:16", "log_sparse", "top_blocks:block=16,k=4", "window:8"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_whole_matrix(family, mask):
    assert_passes(check_generation(model_of(family, mask, torch.bfloat16), lengths=[7, 41, 144]), family)


# In this precision the patched draft model is never wrong, so nothing is taken back.
_NOT_FELT = [("assisted by a patched draft model", "a_crop_too_short")]


@pytest.mark.parametrize(
    ("mode", "fault"),
    [(mode, fault) for mode in MODES for fault in FAULTS[mode] if (mode, fault.__name__) not in _NOT_FELT],
)
def test_a_planted_fault_turns_the_row_red(monkeypatch, mode, fault):
    monkeypatch.setattr(eviction, "ROLLBACK", 12)
    model = model_of("llama", "window:4|sinks:2", torch.bfloat16)
    monkeypatch.setattr(generation, "MODES", {mode: MODES[mode]})
    assert check_generation(model, lengths=[41]).passed
    fault(monkeypatch)
    report = check_generation(model, lengths=[41])
    assert not report.passed, f"\n{report}"


def test_drawn_tokens_are_those_of_the_seed(monkeypatch):
    """Not those that recomputed probabilities would have given: rounding decides between them."""
    monkeypatch.setattr(generation, "MODES", {"sampling": MODES["sampling"]})
    model = model_of("llama", "window:4|sinks:2", torch.bfloat16)
    assert check_generation(model, lengths=[41]).passed
    honest = model.generate

    def one_token_swapped(*args, **kwargs):
        result = honest(*args, **kwargs)
        result.sequences[0, -1] = (result.sequences[0, -1] + 1) % 97
        return result

    monkeypatch.setattr(model, "generate", one_token_swapped)
    assert not check_generation(model, lengths=[41]).passed


@pytest.fixture
def greedy(monkeypatch):
    monkeypatch.setattr(generation, "MODES", {"greedy": generation.MODES["greedy"]})


def test_weights_of_several_dtypes(greedy):
    model = build("llama").bfloat16()
    model.model.embed_tokens.float().register_forward_hook(lambda module, args, output: output.bfloat16())
    patch_model(model, "window:3|sinks:1")
    assert precision(model, []) == torch.bfloat16
    report = check_generation(model, lengths=[9, 41])
    assert report.passed, f"\n{report}"
    assert report.rows[0].difference > TOLERANCES[torch.float32]


def test_autocast(greedy):
    """Wrap a model's forward as accelerate does."""
    model = build("llama")
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    patch_model(model, "window:3|sinks:1")
    report = check_generation(model, lengths=[9, 41])
    assert report.passed, f"\n{report}"
    assert report.rows[0].difference > TOLERANCES[torch.float32]
