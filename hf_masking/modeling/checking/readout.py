"""Read the numbers that the checks compare: a model's outputs for each token."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import FailedCheckError, UnsupportedModelError
from ..base_model.architecture import pretrained
from ..base_model.placement import device_of


class Readout:
    """Reads the logits of a model or, if it has no language-model head, its last hidden states.

    A head that classifies a sequence or its tokens works token by token, and some reject a batch without a padding
    token: so the model under it is run alone.
    """

    def __init__(self, model: nn.Module) -> None:
        base = pretrained(model)
        self.has_head = base.get_output_embeddings() is not None
        # A model with a head is run as a whole: OPT's does more than its base model. Without one, `base_model` is
        # what the head calls; `get_decoder` may be something else (a linear layer in ModernBERT's decoder).
        self.model = model if self.has_head else base.base_model
        self.name = type(base).__name__
        self.vocabulary = int(base.config.get_text_config(decoder=True).vocab_size)
        self.device = device_of(model)
        owner = base if self.has_head else self.model
        self.takes_positions = "position_ids" in inspect.signature(type(owner).forward).parameters
        padding = getattr(base.config.get_text_config(decoder=True), "pad_token_id", None)
        # RoBERTa gives tokens with the padding's id no position of their own.
        tokens = torch.arange(self.vocabulary)
        self._usable = tokens if padding is None or self.vocabulary < 3 else tokens[tokens != padding]

    def __call__(self, tokens: Tensor, *, last: int = 0, **arguments: Any) -> Tensor:
        """Return ``[B, N, size]`` in float32 for tokens ``[B, N]``, from one forward without a cache.

        Parameters:
            last: number of last tokens to read; 0 for all.
            arguments: of the forward.
        """
        return self._read(self.model(input_ids=tokens, use_cache=False, **arguments), last)

    def cached(self, tokens: Tensor, lengths: Sequence[int], **first: Any) -> Tensor:
        """Return the same from tokens that come in pieces, on one cache.

        Parameters:
            lengths: number of tokens in each piece.
            first: arguments of the first forward.
        """
        cache, rows = None, []
        for piece in tokens.split(list(lengths), dim=1):
            output = self.model(input_ids=piece, past_key_values=cache, use_cache=True, **first)
            cache, first = getattr(output, "past_key_values", None), {}
            if cache is None:
                raise UnsupportedModelError(
                    f"{self.name} returns no cache when use_cache=True asks for one, as encoders do; only decoders "
                    "can be patched (is_decoder=True makes one of BERT-like models)"
                )
            rows.append(self._read(output))
        return torch.cat(rows, 1)

    def draw(self, rows: int, length: int, seed: int) -> Tensor:
        """Return random tokens ``[rows, length]``, the same for the same seed."""
        draw = torch.Generator().manual_seed(seed)
        return self._usable[torch.randint(len(self._usable), (rows, length), generator=draw)].to(self.device)

    def another(self, token: int, n: int) -> int:
        """Return another token; different ones for n = 0, 1, ..., as far as the vocabulary goes."""
        if len(self._usable) < 2:
            raise FailedCheckError(
                f"{self.name} has a vocabulary of {self.vocabulary} and the checks change tokens into others"
            )
        place = int((self._usable == token).nonzero()[0])
        return int(self._usable[(place + 1 + n % (len(self._usable) - 1)) % len(self._usable)])

    def _read(self, output: Any, last: int = 0) -> Tensor:
        rows = getattr(output, "logits" if self.has_head else "last_hidden_state", None)
        if not isinstance(rows, Tensor) or rows.ndim != 3:
            raise FailedCheckError(
                f"{self.name} returns {type(output).__name__} without logits or hidden states of each token, which is "
                "what the checks compare"
            )
        return rows[:, -last:].float()
