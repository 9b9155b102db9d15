"""Time the decoding of single tokens by a model whose cache is full."""

from __future__ import annotations

import statistics

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .timing import seconds_of_one


@torch.inference_mode()
def seconds_per_token(model: PreTrainedModel, cache: Cache, column: int, steps: int) -> float:
    """Return the median seconds of decoding one token.

    The first token does not count, unless it is the only one: it finds another contender's data in the processor's
    caches.

    Parameters:
        column: the column of the first token; the cache holds those before.
        steps: the number of tokens to decode, one after the other.
    """
    device = model.device
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    taken = []
    for place in range(column, column + steps):
        # The mask, since a static cache that is not told of it looks at its empty columns as well.
        real = torch.ones(1, place + 1, dtype=torch.long, device=device)
        arguments = {"attention_mask": real, "position_ids": torch.tensor([[place]], device=device)}

        def step(arguments: dict[str, torch.Tensor] = arguments) -> None:
            model(token, past_key_values=cache, **arguments)

        taken.append(seconds_of_one(step, device))
    return statistics.median(taken[1:] or taken)
