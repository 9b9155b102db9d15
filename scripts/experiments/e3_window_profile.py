"""E3: how wide a window must be, and whether its width should grow or shrink from layer to layer.

Published (Beltagy et al. 2020, Longformer, arXiv:2004.05150, Table 4; text8, 10 layers, trained from scratch): windows
growing from 32 to 512 give 1.21 bits a character, 230 in all layers 1.23, and shrinking from 512 to 32 1.24.

Expected before the run, of the base model of four layers, whose attention is full, fine-tuned under windows: wider is
better; at equal pairs growing beats shrinking, as it does from scratch. (From scratch, two cores do not come to where
windows matter: after 200 steps of a pilot 15 and 60 keys were alike, and 4 keys ahead of both.)
Control, which must show less than half of that: two orders of the same widths that neither grow nor shrink, each the
other one backwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lab import Claim, Row, gains, lower, run
from losses import tokens
from tuning import tuned

from hf_masking.training import TrainingSettings

CONTEXT, STEPS, SEEDS = 512, 60, 3
# The windows of the layers, from the first to the last.
PROFILES = {
    "growing": (4, 8, 16, 32),
    "shrinking": (32, 16, 8, 4),
    "mixed": (8, 32, 4, 16),
    "mixed, backwards": (16, 4, 32, 8),
}
WIDTHS = {"narrow": (4, 4, 4, 4), "equal": (15, 15, 15, 15), "wide": (60, 60, 60, 60)}
SETTINGS = TrainingSettings(context=CONTEXT, steps=STEPS, batch_size=4, warmup_steps=10, eval_every=STEPS)


def measure() -> Iterator[Row]:
    train, held_out = tokens(700_000, 64 * CONTEXT + 1)
    for seed in range(SEEDS):
        settings = dataclasses.replace(SETTINGS, seed=seed)
        for name, windows in (WIDTHS | PROFILES).items():
            if name in WIDTHS and seed:
                continue  # what they differ by is far beyond what seeds do
            masks = {layer: f"window:{window}" for layer, window in enumerate(windows)}
            loss = tuned("causal", settings, train, held_out, layers=masks)
            row = {"mask": name, "windows": " ".join(map(str, windows)), "seed": seed}
            yield row | {"right away": loss[0], "fine-tuned": loss[STEPS]}


def judge(rows: list[Row]) -> list[Claim]:
    narrow, equal, wide = (
        next(row["fine-tuned"] for row in rows if row["mask"] == name and row["seed"] == 0)
        for name in ("narrow", "equal", "wide")
    )
    growing, error = gains(rows, "growing", "shrinking", "fine-tuned")
    mixed, mixed_error = gains(rows, "mixed", "mixed, backwards", "fine-tuned")
    return [
        Claim(
            "wider is better: 4, 15 and 60 keys in all layers",
            f"losses of {narrow:.3f}, {equal:.3f} and {wide:.3f} nats",
            narrow > equal > wide,
        ),
        Claim(
            "growing beats shrinking, by more than twice the error",
            f"its loss is {lower(growing, error)}",
            growing > max(2 * error, 0.3),
        ),
        Claim(
            "control: a mixed order and its reverse differ by less than half of that",
            f"by {mixed:.2f}% ± {mixed_error:.2f}%",
            abs(mixed) < abs(growing) / 2,
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    names = list(dict.fromkeys(row["mask"] for row in rows))
    for seed in sorted({row["seed"] for row in rows}):
        chosen = [row for row in rows if row["seed"] == seed]
        places = [names.index(row["mask"]) for row in chosen]
        axes.plot(places, [row["fine-tuned"] for row in chosen], "o", label=f"seed {seed}")
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(title="Windows by layer", ylabel="loss after fine-tuning (nats per token)")


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
