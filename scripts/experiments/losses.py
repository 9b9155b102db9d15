"""Tokenize the texts, and score each token under the mask of a model."""

from __future__ import annotations

import torch
from base import base_model, texts
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel

from hf_masking.evaluation import encode
from hf_masking.training import Contexts


def tokens(to_train_on: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Return the first token ids of the text to train on, and of the held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    train, rest = texts()
    return encode(train, tokenizer, to_train_on)[0], encode(rest, tokenizer, held_out)[0]


@torch.no_grad()
def losses(model: PreTrainedModel, contexts: Contexts) -> Tensor:
    """Return the losses in nats ``[n, context]``; the first is that of the second token."""
    model.eval()
    found = []
    for inputs, labels in zip(contexts.inputs.split(8), contexts.labels.split(8), strict=True):
        logits = model(inputs, use_cache=False).logits
        found.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels))
    return torch.cat(found)
