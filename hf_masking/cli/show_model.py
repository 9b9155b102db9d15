"""Draw the realized mask of a model on a text, for `hf-masking show --model`."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from ..evaluation import STDLIB, Text, encode, load_text
from ..evaluation.loading import check_vocabulary, load_tokenizer
from ..files import written_aside
from ..masks import MaskExpression
from ..masks.picture import draw_weights_png, draw_weights_text
from ..modeling import check_fits, effective_weights, evaluating, label_of, patched, shape_of
from .console import check_picture, say_written
from .loading import check_loading, load_placed
from .options.show import ShowModelOptions, ShowOptions
from .terminal import signs


def draw_in_model(mask: MaskExpression, asked: ShowOptions, widest: int) -> str:
    """Return the picture as text, unless it is wider than ``widest``, and its figures; as JSON the figures alone."""
    options, length, png = asked.inside, asked.length, asked.png
    assert options.model is not None
    check_loading(asked.loading)
    if png is not None:
        check_picture(png)
    tokenizer = load_tokenizer(options.model, **asked.loading.where())
    model = load_placed(options.model, asked.loading)
    text = load_text(STDLIB) if options.text is None else Text("--text", options.text)
    tokens = encode(text, tokenizer, length)[0][None].to(model.device)
    if not tokens.numel():
        raise ValueError("the text has no tokens; give some: --text 'Once upon a time'")
    check_vocabulary(model, tokenizer)
    check_fits(model, tokens, tokens.shape[1])
    with patched(model, mask, check=False), evaluating(model):
        layers = [layer[0] for layer in effective_weights(model, input_ids=tokens, use_cache=False)]
        name = label_of(model)
    layers = [layer if layer.ndim == 3 else layer[None] for layer in layers]
    shown = _chosen(layers, options, shape_of(model.config).query_heads)
    title = f"{name}, layer {options.show_layer % len(layers)}, head {options.head}"
    if png is not None:
        with written_aside(png) as aside:
            draw_weights_png(shown, title, aside)
        say_written(png)
    found = _figures(name, shown, layers)
    if asked.json:
        return json.dumps(found, indent=2)
    drawn = f"{draw_weights_text(shown, **signs())}\n" if shown.shape[0] <= widest else ""
    return drawn + _lines(found)


def _chosen(layers: list[Tensor], options: ShowModelOptions, n_heads: int) -> Tensor:
    if not -len(layers) <= options.show_layer < len(layers):
        raise ValueError(
            f"--show-layer must be from 0 to {len(layers) - 1}, or -1 for the last, got {options.show_layer}"
        )
    if not 0 <= options.head < n_heads:
        raise ValueError(f"--head must be from 0 to {n_heads - 1}, got {options.head}")
    heads = layers[options.show_layer]
    # Heads with the same mask share one entry.
    return heads[options.head * len(heads) // n_heads]


def _figures(mask: str, shown: Tensor, layers: list[Tensor]) -> dict[str, Any]:
    length = shown.shape[0]
    whole = torch.stack([(layer > 0).double().mean(0).sum() for layer in layers])
    return {
        "mask": mask,
        "length": length,
        "pairs": int((shown > 0).sum()),
        "causal_pairs": length * (length + 1) // 2,
        "weight": float(shown.sum()),
        "pairs_ahead": int((shown.triu(1) > 0).sum()),
        "mean_pairs": float(whole.mean()),
    }


def _lines(found: dict[str, Any]) -> str:
    pairs, causal, ahead = found["pairs"], found["causal_pairs"], found["pairs_ahead"]
    lookahead = f"\nlookahead  {ahead:,} pairs see what comes later: no generation" if ahead else ""
    return (
        f"mask       {found['mask']}\n"
        f"density    {pairs / causal:.2%} of causal here ({pairs:,} of {causal:,} pairs), mean weight "
        f"{found['weight'] / causal:.2%}\n"
        f"           {found['mean_pairs'] / causal:.2%} over all layers and heads{lookahead}"
    )
