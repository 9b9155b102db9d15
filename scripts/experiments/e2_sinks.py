"""E2: a window alone against a window and sinks, past the window.

Published (Xiao et al. 2023, StreamingLLM, arXiv:2309.17453): LLaMA-2-13B on 65,000 tokens of PG-19 has a perplexity of
5,158 with the last 1,024 tokens and of 5.40 with the first 4 and the last 1,020. What is lost is not content: the first
tokens are where attention goes that has nowhere to go. Gu et al. (2024, arXiv:2410.10781): that is learnt late, and of
much text.

Expected before the run, of the base model: with the first 4 tokens in place of the 4 furthest ones of the window the
loss past the window is lower, at each width. Why, or why not, should show in the attention that these tokens get under
full attention; that was added when the first expectation had failed.
Control, which must show less than a third of the gain: the tokens 4 to 7 in their place, as old and as useful as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from base import base_model
from lab import Claim, Row, run
from losses import losses, tokens
from torch import Tensor
from transformers import PreTrainedModel

from hf_masking import patched
from hf_masking.modeling import load
from hf_masking.pictures import colour_of, log_scale
from hf_masking.training import Contexts

CONTEXT, SINKS = 512, 4
WIDTHS = (16, 32, 64, 128)


@torch.no_grad()
def attention_on(model: PreTrainedModel, inputs: Tensor, first: int) -> float:
    """The share of all attention past a quarter of the context that goes to four tokens from ``first`` on."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = model(inputs, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return float(
        torch.stack([layer[:, :, CONTEXT // 4 :, first : first + SINKS].sum(-1) for layer in attentions]).mean()
    )


def measure() -> Iterator[Row]:
    held_out = Contexts.pack(tokens(1, 64 * CONTEXT + 1)[1], CONTEXT)
    model = load(str(base_model())).eval()
    shares = {
        "and sinks": attention_on(model, held_out.inputs[:8], 0),
        "and the next tokens": attention_on(model, held_out.inputs[:8], SINKS),
    }
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
                # A quarter into the context each of these masks leaves something out.
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
                "their attention": shares.get(name),
            }


def _of(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["sees"] == name]


def judge(rows: list[Row]) -> list[Claim]:
    sinks, others = _of(rows, "and sinks"), _of(rows, "and the next tokens")
    share, other_share = sinks[0]["their attention"], others[0]["their attention"]
    return [
        Claim(
            "sinks lower the loss at each width, by more than twice the error",
            "by " + ", ".join(f"{row['gain']:.3f} ± {row['its error']:.3f}" for row in sinks) + " nats",
            all(row["gain"] > 2 * row["its error"] for row in sinks),
        ),
        Claim(
            "the first four tokens get three times the attention of the four after them",
            f"{share:.2%} and {other_share:.2%} of it",
            share > 3 * other_share,
        ),
        Claim(
            "control: the four tokens after them gain less than a third of what sinks do, or nothing",
            "by " + ", ".join(f"{row['gain']:.3f} ± {row['its error']:.3f}" for row in others) + " nats",
            all(
                other["gain"] < max(sink["gain"] / 3, 2 * other["its error"])
                for sink, other in zip(sinks, others, strict=True)
            ),
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for name in dict.fromkeys(row["sees"] for row in rows):
        chosen = _of(rows, name)
        color = colour_of("causal" if name == "everything" else name)
        axes.plot([row["width"] for row in chosen], [row["loss"] for row in chosen], "o-", label=name, color=color)
    axes.set(title="A window, with and without sinks", xlabel="keys of a query")
    axes.set(ylabel="loss past the window (nats per token)")
    log_scale(axes.xaxis, WIDTHS)


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
