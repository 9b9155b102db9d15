"""Compute perplexity reproducibly: each token is scored once, with the same weight."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..modeling import check_fits, evaluating, layer_masks
from .scoring import Perplexity, Tally, WindowedText


def perplexity(
    model: nn.Module,
    token_ids: Tensor,
    *,
    context: int,
    stride: int | None = None,
    bos_token_id: int | None = None,
    batch_size: int = 1,
    text_bytes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    group: ProcessGroup | None = None,
) -> Perplexity:
    """Return the perplexity of a text under a causal model, patched or not.

    Windows start at multiples of ``stride``. A window reads ``context`` tokens and predicts the token after each. A
    token is scored in the first window that predicts it: all tokens but the first, or all of them with a BOS token,
    which then is the first token of every window. The model is evaluated without dropout.

    Parameters:
        token_ids: ``[N]`` integers, the text without special tokens.
        context: tokens that a window reads.
        stride: distance from a window to the next, by default ``context``; smaller gives every token more context.
        bos_token_id: put before every window if given.
        batch_size: windows in a forward pass.
        text_bytes: length of the text in UTF-8, for bits per byte.
        on_progress: called with the number of tokens just scored.
        group: processes that share each window, as in `sequence_parallel`; all of them get the result.

    Raises:
        ValueError: a stride greater than the context, a text shorter than one context, tokens or positions without an
            embedding, or a mask with lookahead.
    """
    text = WindowedText(token_ids, context, stride, bos_token_id, batch_size)
    check_fits(model, token_ids, context)
    refuse_lookahead(model, "its perplexity")
    tally = Tally(context)
    with evaluating(model):
        for batch in text.batches():
            losses = text.losses(model, batch, group)
            tally.add(batch, losses)
            if on_progress is not None:
                on_progress(losses.numel())
    return tally.result(text_bytes)


def refuse_lookahead(model: nn.Module, purpose: str) -> None:
    """Raise a ValueError if a mask of the model has lookahead: predictions would have seen their answers."""
    masks = layer_masks(model)
    for mask in masks:
        if mask.needs:
            raise ValueError(
                f"mask {mask} needs marked tokens, and a plain text has no marks, so {purpose} is not defined; use "
                "another mask, one with a fixed number such as 'prompt:17', or your own loop with prompt_lengths=, "
                "prefix_lengths= or span_ids="
            )
    worst = max(masks, key=lambda mask: mask.union.lookahead, default=None)
    if worst is not None and worst.union.lookahead:
        raise ValueError(
            f"mask {worst} looks {worst.union.lookahead} tokens ahead, so {purpose} would score answers that were "
            "seen; use a causal mask such as block_local:64,1"
        )
