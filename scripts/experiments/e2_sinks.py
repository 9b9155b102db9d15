"""E2: a window alone against a window and sinks, past the window.

Published (Xiao et al. 2023, StreamingLLM, arXiv:2309.17453): LLaMA-2-13B on 65,000 tokens of PG-19 has a perplexity of
5,158 with the last 1,024 tokens and of 5.40 with the first 4 and the last 1,020. What is lost is not content: the first
tokens are where attention goes that has nowhere to go.

Expected before the run, of a model trained under full attention: with the first 4 tokens in place of the 4 furthest
ones of the window the loss past the window is lower, at each width.
Control, which must show less than a third of that: the tokens 4 to 7 in their place, as old and as useful as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from base import base_model
from lab import Claim, Row, run
from losses import losses, tokens

from hf_masking import patched
from hf_masking.modeling import load
from hf_masking.training import Contexts

CONTEXT, SINKS = 512, 4
WIDTHS = (16, 32, 64, 128)


def measure() -> Iterator[Row]:
    held_out = Contexts.pack(tokens(1, 64 * CONTEXT + 1)[1], CONTEXT)
    model = load(str(base_model()))
    for width in WIDTHS:
        masks = {
            "window": f"window:{width}",
            "and sinks": f"window:{width - SINKS}|sinks:{SINKS}",
            "and the next tokens": f"window:{width - SINKS}|(sinks:{2 * SINKS}-sinks:{SINKS})",
            "everything": "causal",
        }
        alone = None
        for name, mask in masks.items():
            with patched(model, mask, check=False):
                # What a query that all of these masks leave something out for predicts.
                each = losses(model, held_out)[:, CONTEXT // 4 :].mean(1)
            alone = each if alone is None else alone
            gain = alone - each
            yield {
                "sees": name,
                "mask": mask,
                "width": width,
                "loss": float(each.mean()),
                "gain": float(gain.mean()),
                "its error": float(gain.std() / len(gain) ** 0.5),
            }


def _gains(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["sees"] == name]


def judge(rows: list[Row]) -> list[Claim]:
    sinks, others = _gains(rows, "and sinks"), _gains(rows, "and the next tokens")
    return [
        Claim(
            "sinks lower the loss at each width, by more than twice the error",
            "by " + ", ".join(f"{row['gain']:.3f} ± {row['its error']:.3f}" for row in sinks) + " nats",
            all(row["gain"] > 2 * row["its error"] for row in sinks),
        ),
        Claim(
            "control: the four tokens behind them give less than a third of that",
            "they give " + ", ".join(f"{row['gain']:.3f} ± {row['its error']:.3f}" for row in others) + " nats",
            all(other["gain"] < sink["gain"] / 3 for sink, other in zip(sinks, others, strict=True)),
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for name in dict.fromkeys(row["sees"] for row in rows):
        chosen = _gains(rows, name)
        axes.plot([row["width"] for row in chosen], [row["loss"] for row in chosen], marker="o", label=name)
    axes.set(xscale="log", xlabel="keys of a query", ylabel="loss past the window, nats a token")
    axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
