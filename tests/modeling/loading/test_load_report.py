"""Learned parameters of masks are loaded by `from_pretrained`, and nobody reports them as unexpected."""

import logging

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_masking import from_pretrained, patch_model

from ..families import build


@pytest.fixture
def folder(tmp_path):
    patch_model(build("llama"), "adaptive_span:max=20", check=False).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def reported():
    """The messages of Transformers while it loads models."""
    messages, logger = [], logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_learned_parameters_are_not_reported(folder, reported):
    from_pretrained(folder)
    assert reported == []


def test_transformers_alone_reports_them(folder, reported):
    AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    assert "self_attn.hf_masking.adaptive_span.share" in reported[0]


def test_other_weights_are_still_reported(folder, reported, caplog):
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"surplus": weights["lm_head.weight"].clone()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    from_pretrained(folder)
    assert reported == []
    assert "holds weights that LlamaForCausalLM does not use: surplus" in caplog.text
