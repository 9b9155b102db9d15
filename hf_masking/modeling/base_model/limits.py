"""Check that a model has embeddings for the tokens of a text, and for its length."""

from __future__ import annotations

import logging
import weakref

from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture import positions_of

logger = logging.getLogger("hf_masking")

_OFFSETS = 8  # most rows of a position table that are for no position; OPT has 2
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_fits(model: nn.Module, token_ids: Tensor, length: int, what: str | None = None) -> None:
    """Check that a model has embeddings for the tokens of a text, and for ``length`` positions.

    A model without a position table (rotary embeddings) takes longer texts than it was made for; a warning is logged,
    once per model.

    Parameters:
        what: what takes so many positions, as messages call it.

    Raises:
        ValueError: the model has no embedding for a token or a position.
    """
    base = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if base is None:
        return
    what = what or f"a context of {length} tokens"
    rows, greatest = vocabulary_of(base), int(token_ids.max()) if token_ids.numel() else 0
    if greatest >= rows:
        raise ValueError(
            f"the text has token {greatest}, and the model has embeddings for {rows} tokens, 0 to {rows - 1}; "
            "use the model's own tokenizer"
        )
    learned, made_for = learned_positions(base), positions_of(base.config)
    if learned is not None and length > learned:
        raise ValueError(f"{what} takes {length} positions, and the model has {learned}; use at most {learned} tokens")
    if learned is None and length > made_for and base not in _warned:
        _warned.add(base)
        logger.warning(
            "%s takes %d positions, more than the %d that the model was made for (max_position_embeddings)",
            what,
            length,
            made_for,
        )


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has input embeddings for."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return int(rows or model.config.get_text_config(decoder=True).vocab_size)


def learned_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions in a model's table of position embeddings; None if it has no table."""
    most, tokens = positions_of(model.config), model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not tokens:
            # RoBERTa counts its positions from the one after the padding's.
            rows = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            if most <= module.num_embeddings <= most + _OFFSETS:
                return min(most, rows)
    return None
