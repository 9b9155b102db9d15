"""Run `hf-masking show SPEC`: draw a mask."""

from __future__ import annotations

from pathlib import Path

from ..files import written_aside
from ..masks import Causal, Mask, MaskExpression
from ..masks.counting import count_pairs, keys_kept
from ..masks.picture import draw_png, draw_text
from ..plan import Lengths, plan_of
from ..spec import parse_mask
from .console import check_picture, say_written
from .options.groups import LoadingOptions
from .options.show import ShowModelOptions, ShowOptions
from .show_model import draw_in_model
from .terminal import console, errors, signs
from .values import at_least, at_most, utf_8

WIDEST = 64  # positions that are drawn as text
LONGEST_IN_A_MODEL = 4096  # every pair of every head is computed
LONGEST = 2**20  # a few hundred bytes per position


def run(options: ShowOptions) -> None:
    """Draw a mask, and print its figures."""
    inside, length, png = options.inside, options.length, options.png
    at_least(1, length=length)
    utf_8(text=inside.text)
    at_most(LONGEST if inside.model is None else LONGEST_IN_A_MODEL, length=length)
    mask = parse_mask(options.spec)
    if mask.is_adaptive and inside.model is None:
        raise ValueError(f"what '{mask}' allows depends on the content; say in which model: --model MODEL --text TEXT")
    if inside.model is None and (inside, options.loading) != (ShowModelOptions(), LoadingOptions()):
        raise ValueError(
            "--text, --show-layer, --head, --dtype and the like need a model to show the realized mask in; name it: "
            "--model MODEL"
        )
    if inside.model is not None:
        _print(draw_in_model(mask, options, WIDEST))
        return
    if png is not None:
        check_picture(png)
        _draw(mask, length, png)
    drawn = signs()
    for member in mask.heads:
        if len(mask.heads) > 1:
            _print(f"heads with {member}")
        if length <= WIDEST:
            _print(draw_text(member, length, allowed=drawn["allowed"], excluded=drawn["excluded"]))
        _print(_figures(member, length))
    if length > WIDEST:
        errors.print(f"(drawn as text up to {WIDEST} positions; --png FILE draws {length})")


def _figures(mask: Mask, length: int) -> str:
    pairs, causal = count_pairs(mask, length), count_pairs(Causal(), length)
    lookahead = f"{mask.lookahead} tokens: no generation" if mask.lookahead else "0 (causal)"
    plan = plan_of(mask, Lengths(0, length, 0, length))
    parts = "".join(f"\n           + {part}" for part in plan.parts)
    return (
        f"mask       {mask}\n"
        f"density    {pairs / causal:.2%} of causal ({pairs:,} of {causal:,} pairs)\n"
        f"lookahead  {lookahead}\n"
        f"cache      {keys_kept(mask, length):,} of {length:,} keys can still be read at length {length:,}\n"
        f"plan       {plan.touched:,} pairs computed, {plan.touched / max(1, pairs):.2f} of those allowed{parts}"
    )


def _print(text: str) -> None:
    console.print(text, soft_wrap=True)


def _draw(mask: MaskExpression, length: int, path: Path) -> None:
    if length > 4096:
        raise ValueError(f"--png draws at most 4096 positions, got {length}")
    with written_aside(path) as aside:
        draw_png(mask, length, aside)
    say_written(path)
