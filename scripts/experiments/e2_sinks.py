"""E2: a window alone against a window and sinks, past the window.

Published (Xiao et al. 2023, StreamingLLM, arXiv:2309.17453): LLaMA-2-13B on 65,000 tokens of PG-19 has a perplexity of
5,158 with the last 1,024 tokens and of 5.40 with the first 4 and the last 1,020. What is lost is not content: the first
tokens are where attention goes that has nowhere to go. Guo et al. (2024, arXiv:2410.13835) train that into a model of
one layer by a task of bigrams, of which some tokens ask for a copy of the one before: every other token is to be left
alone, and its attention goes to the first one.

Expected before the run, of the base model: with the first 4 tokens in place of the 4 furthest ones of the window the
loss past the window is lower, at each width. The task of Guo et al. was added when this had failed, with the expectation
that sinks bring back at least nine tenths of what the window costs.
Control, which must show less than a third of that: the tokens 4 to 7 in their place, as old and as useful as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from base import base_model
from lab import Claim, Row, run
from losses import losses, tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hf_masking import patched
from hf_masking.modeling import load
from hf_masking.training import Contexts

CONTEXT, SINKS = 512, 4
WORDS, COPY, LENGTH, STEPS = 64, 4, 128, 2000  # of the task: tokens, those that ask for a copy, tokens in a text
TEXT, TASK = "text", "bigrams and copies"


def bigrams(draw: torch.Generator, odds: Tensor, count: int) -> Contexts:
    """Token 0 and a text in which each follows the one before by its odds, or, behind a token up to COPY, repeats it."""
    texts = torch.zeros(count, LENGTH + 1, dtype=torch.long)
    for place in range(1, LENGTH + 1):
        before = texts[:, place - 1]
        drawn = torch.multinomial(odds[before], 1, generator=draw)[:, 0]
        copied = (before > 0) & (before <= COPY)
        texts[:, place] = torch.where(copied, texts[:, place - 2], drawn) if place > 1 else drawn
    return Contexts(texts[:, :-1], texts[:, 1:])


def of_bigrams() -> tuple[PreTrainedModel, Contexts]:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    odds = (3 * torch.randn(WORDS, WORDS, generator=draw)).softmax(-1)
    odds[:, 0] = 0  # only a text begins with it
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=1,
        initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    texts = bigrams(draw, odds, 16_384)
    for step in range(STEPS):
        batch = texts.batch(texts.indices(step, 32, seed=0))
        logits = model(batch["input_ids"], use_cache=False).logits
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
        optimizer.step()
        schedule.step()
    return model, bigrams(draw, odds, 256)


@torch.no_grad()
def on_sinks(model: PreTrainedModel, inputs: Tensor) -> float:
    """The share of all attention past a quarter of the context that goes to the first tokens."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = model(inputs, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation(before)
    late = torch.stack([layer[:, :, inputs.shape[1] // 4 :, :SINKS].sum(-1).mean() for layer in attentions])
    return float(late.mean())


def measure() -> Iterator[Row]:
    text = Contexts.pack(tokens(1, 64 * CONTEXT + 1)[1], CONTEXT)
    yield from under_masks(TEXT, load(str(base_model())), text, (16, 32, 64, 128))
    yield from under_masks(TASK, *of_bigrams(), (8, 16, 32))


def under_masks(data: str, model: PreTrainedModel, held_out: Contexts, widths: tuple[int, ...]) -> Iterator[Row]:
    share = on_sinks(model, held_out.inputs[:8])
    for width in widths:
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
                each = losses(model, held_out)[:, held_out.inputs.shape[1] // 4 :].mean(1)
            alone = each if alone is None else alone
            gain = alone - each
            yield {
                "data": data,
                "attention on sinks": share,
                "sees": name,
                "mask": mask,
                "width": width,
                "loss": float(each.mean()),
                "gain": float(gain.mean()),
                "its error": float(gain.std() / len(gain) ** 0.5),
            }


def _of(rows: list[Row], data: str, name: str) -> list[Row]:
    return [row for row in rows if (row["data"], row["sees"]) == (data, name)]


def judge(rows: list[Row]) -> list[Claim]:
    text = _of(rows, TEXT, "and sinks")
    parts = {
        name: [
            row["gain"] / everything["gain"]
            for row, everything in zip(_of(rows, TASK, name), _of(rows, TASK, "everything"), strict=True)
        ]
        for name in ("and sinks", "and the next tokens")
    }
    costs = [row["gain"] for row in _of(rows, TASK, "everything")]
    return [
        Claim(
            "on text sinks lower the loss at each width, by more than twice the error",
            "by " + ", ".join(f"{row['gain']:.3f} ± {row['its error']:.3f}" for row in text) + " nats; the first four "
            f"tokens get {text[0]['attention on sinks']:.1%} of the base model's attention: it has not learnt sinks",
            all(row["gain"] > 2 * row["its error"] for row in text),
        ),
        Claim(
            "on bigrams and copies they bring back nine tenths of what the window costs",
            ", ".join(f"{part:.1%} of {cost:.2f} nats" for part, cost in zip(parts["and sinks"], costs, strict=True))
            + f"; the first four tokens get {_of(rows, TASK, 'window')[0]['attention on sinks']:.1%} of the attention",
            min(parts["and sinks"]) >= 0.9,
        ),
        Claim(
            "control: there the four tokens behind the sinks bring back less than a third",
            ", ".join(f"{part:.1%}" for part in parts["and the next tokens"]),
            max(parts["and the next tokens"]) < 1 / 3,
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for data, line in ((TEXT, "-"), (TASK, "--")):
        for name in dict.fromkeys(row["sees"] for row in rows):
            chosen = _of(rows, data, name)
            axes.plot([row["width"] for row in chosen], [row["loss"] for row in chosen], f"o{line}", label=f"{data}: {name}")
    axes.set(xscale="log", xlabel="keys of a query", ylabel="loss past the window, nats a token")
    widths = sorted({row["width"] for row in rows})
    axes.set_xticks(widths, [str(width) for width in widths])


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
