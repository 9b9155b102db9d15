"""Run `hf-masking show SPEC`: draw a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    if options.json:
        _print(
            json.dumps({"mask": options.spec, "heads": [_figures(member, length) for member in mask.heads]}, indent=2)
        )
        return
    for member in mask.heads:
        if len(mask.heads) > 1:
            _print(f"heads with {member}")
        _show(member, length)
    if length > WIDEST:
        errors.print(f"(drawn as text up to {WIDEST} positions; --png FILE draws {length})")


def _show(mask: Mask, length: int) -> None:
    drawn = signs()
    if length <= WIDEST:
        _print(draw_text(mask, length, allowed=drawn["allowed"], excluded=drawn["excluded"]))
    _print(_lines(_figures(mask, length)))


def _figures(mask: Mask, length: int) -> dict[str, Any]:
    plan = plan_of(mask, Lengths(0, length, 0, length))
    return {
        "mask": str(mask),
        "length": length,
        "pairs": count_pairs(mask, length),
        "causal_pairs": count_pairs(Causal(), length),
        "lookahead": mask.lookahead,
        "retained_keys": keys_kept(mask, length),
        "computed_pairs": plan.touched,
        "parts": [str(part) for part in plan.parts],
    }


def _lines(found: dict[str, Any]) -> str:
    pairs, causal, length, computed = (found[name] for name in ("pairs", "causal_pairs", "length", "computed_pairs"))
    lookahead = f"{found['lookahead']} tokens: no generation" if found["lookahead"] else "0 (causal)"
    parts = "".join(f"\n           + {part}" for part in found["parts"])
    return (
        f"mask       {found['mask']}\n"
        f"density    {pairs / causal:.2%} of causal ({pairs:,} of {causal:,} pairs)\n"
        f"lookahead  {lookahead}\n"
        f"cache      {found['retained_keys']:,} of {length:,} keys can still be read at length {length:,}\n"
        f"plan       {computed:,} pairs computed, {computed / max(1, pairs):.2f} of those allowed{parts}"
    )


def _print(text: str) -> None:
    console.print(text, soft_wrap=True)


def _draw(mask: MaskExpression, length: int, path: Path) -> None:
    if length > 4096:
        raise ValueError(f"--png draws at most 4096 positions, got {length}")
    with written_aside(path) as aside:
        draw_png(mask, length, aside)
    say_written(path)
