"""A GPT-2 whose weights are set by hand: it looks up what followed the last token where that occurred before."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

SHARP = 60.0  # how much a key that fits scores above the others, about


@torch.no_grad()
def induction_model(vocabulary: int, positions: int) -> GPT2LMHeadModel:
    """Layer 0 copies the token before each token; layer 1 attends to tokens after the current one, and copies them.

    The hidden state has a place for the token, the one before it, the output, and the position, each as one-hot.
    """
    width = 3 * vocabulary + positions
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=2, n_head=1, n_inner=1,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
    token, before, output, position = torch.eye(width).split([vocabulary, vocabulary, vocabulary, positions])
    model.transformer.wte.weight.copy_(token)
    model.transformer.wpe.weight.copy_(position)
    model.lm_head.weight.copy_(output)
    # After layer normalization a one-hot of width w is about w ** 0.5 high; scores are divided by that once.
    sharp = SHARP / width**0.5
    first, second = (layer.attn for layer in model.transformer.h)
    _attend(first, query=position[1:], key=position[:-1], sharp=sharp)
    _carry(first, source=token, target=before)
    _attend(second, query=token, key=before, sharp=sharp)
    _carry(second, source=token, target=output)
    return model


def _attend(attention, query, key, sharp):
    """Let a query whose i-th place is set attend to the keys whose i-th place is set."""
    width, n = query.shape[1], len(query)
    weight = attention.c_attn.weight
    weight[:, :n] = sharp * query.T
    weight[:, width : width + n] = key.T


def _carry(attention, source, target):
    """Let the attention write what stands in one part of the state into another one."""
    width = source.shape[1]
    attention.c_attn.weight[:, 2 * width : 2 * width + len(source)] = source.T
    attention.c_proj.weight[: len(source)] = target
