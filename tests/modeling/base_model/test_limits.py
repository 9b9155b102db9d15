"""Texts that a model has no embeddings for."""

import logging

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    GPTBigCodeConfig,
    GPTNeoConfig,
    OPTConfig,
    RobertaConfig,
)

from hf_masking import perplexity
from hf_masking.modeling import check_fits, learned_positions

from ..families import build, tokens

SHAPE = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
POSITIONS = {"max_position_embeddings": 32}
WITH_TABLES = [
    OPTConfig(**SHAPE, **POSITIONS, ffn_dim=32, word_embed_proj_dim=24),
    GPTNeoConfig(vocab_size=97, hidden_size=24, num_heads=4, num_layers=2, **POSITIONS,
                 attention_types=[[["global", "local"], 1]]),
    GPTBigCodeConfig(vocab_size=97, n_embd=24, n_layer=2, n_head=4, n_positions=32),
    BioGptConfig(**SHAPE, **POSITIONS, intermediate_size=32),
    RobertaConfig(**SHAPE, max_position_embeddings=34, intermediate_size=32, is_decoder=True),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # GPT-BigCode of Transformers 5.17 scripts a function
@pytest.mark.parametrize("config", WITH_TABLES, ids=lambda config: config.model_type)
def test_tables_of_positions(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    assert learned_positions(model) == 32
    model(tokens(1, 32))
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens(1, 33))
    with pytest.raises(ValueError, match="a context of 33 tokens takes 33 positions, and the model has 32"):
        perplexity(model, tokens(1, 50)[0], context=33)


def test_rotary_models_read_on_and_that_is_logged_once(caplog):
    model = build("llama", max_position_embeddings=16)
    assert learned_positions(model) is None
    with caplog.at_level(logging.WARNING, "hf_masking"):
        for _ in range(2):
            check_fits(model, tokens(1, 16)[0], 16)
            perplexity(model, tokens(1, 50)[0], context=20)
    assert [record.message for record in caplog.records] == [
        "a context of 20 tokens takes 20 positions, more than the 16 that the model was made for "
        "(max_position_embeddings)"
    ]


def test_tokens_without_an_embedding():
    with pytest.raises(ValueError, match="the text has token 97, and the model has embeddings for 97 tokens, 0 to 96"):
        perplexity(build("llama"), torch.arange(98), context=8)
