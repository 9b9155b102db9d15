"""Read the marks of a batch: prefixes, spans and prompts, from its arguments, its cache, or a call of `generate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...masks import MaskExpression
from ...plan.documents import PADDING
from .prompts import read_prompts
from .spans import read_spans


@dataclass(frozen=True)
class Needs:
    """The needs of a model's masks: what they must know about a batch.

    names: of the marks, as in `MaskExpression.needs`.
    adaptive: its hidden states; a cache stores the features of its keys.
    lookahead: this many tokens after the query, outside marked spans; `generate` has none.
    """

    names: frozenset[str]
    adaptive: bool
    lookahead: int

    @classmethod
    def of(cls, masks: Iterable[MaskExpression]) -> Needs:
        masks = list(masks)
        return cls(
            names=frozenset().union(*(mask.needs for mask in masks)),
            adaptive=any(mask.is_adaptive for mask in masks),
            lookahead=max((mask.unmarked.union.lookahead for mask in masks), default=0),
        )

    @property
    def spans(self) -> bool:
        """True if they need to know which tokens are marked."""
        return not self.names.isdisjoint({"prefix", "spans"})

    @property
    def prompt(self) -> bool:
        """True if they need to know where the prompt ends."""
        return "prompt" in self.names


def refuse_unneeded(given: Mapping[str, Any], needs: Needs) -> None:
    """Raise a ValueError if tokens are marked and no mask needs these marks."""
    for name, mask, needed in (
        ("prefix_lengths", "prefix|causal", needs.spans),
        ("span_ids", "spans|causal", needs.spans),
        ("prompt_lengths", "prompt|window:256", needs.prompt),
        ("prompt_mask", "prompt|window:256", needs.prompt),
    ):
        if given.get(name) is not None and not needed:
            raise ValueError(f"{name} is for a mask that needs it, such as patch_model(model, '{mask}')")


def read_marks(
    arguments: Mapping[str, Any],
    needs: Needs,
    cache: Cache | None,
    real: Tensor | None,
    ids: Tensor | None,
    shape: tuple[int, int, int],
) -> Tensor | None:
    """Return the marks of each token ``[B or 1, 2, N]``, as in `Documents`; None where the masks need none.

    Parameters:
        arguments: those of the forward, by name.
        needs: what the masks need to know.
        cache: the cache, if its layers are `MaskedLayer`s.
        real: ``[B, N]``, False for padding; None where no token is.
        ids: the document of each token ``[B, N]``, where rows may hold several.
        shape: rows, cached tokens and new tokens.

    Raises:
        ValueError: marks are missing, or given where no mask needs them.
    """
    refuse_unneeded(arguments, needs)
    if not needs.names:
        return None
    spans, prompts = torch.full((1, 1), PADDING), torch.zeros(1, 1, dtype=torch.long)
    if needs.spans:
        spans = read_spans(arguments, "spans" not in needs.names, real, ids is not None, shape)
    if needs.prompt:
        prompts = read_prompts(arguments, cache, real, ids, shape)
    rows, device = max(len(spans), len(prompts)), (spans if needs.spans else prompts).device
    return torch.stack([x.to(device).expand(rows, sum(shape[1:])) for x in (spans, prompts)], dim=1)
