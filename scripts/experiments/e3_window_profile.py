"""E3: how wide a window must be, and whether its width should grow or shrink from layer to layer.

Published (Beltagy et al. 2020, Longformer, arXiv:2004.05150, Table 4; text8, 10 layers, trained from scratch): windows
growing from 32 to 512 give 1.21 bits a character, 230 in all layers 1.23, and shrinking from 512 to 32 1.24.

Expected before the run, of four layers trained from scratch: wider is better; at equal pairs growing beats shrinking.
After 200 steps, in a first run that was stopped, no width had been learnt to be used (15 and 60 keys came out alike, and
4 keys ahead of both); now there are 600.
Control, which must show less than half of that: two orders of the same widths that neither grow nor shrink, each the
other one backwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from lab import Claim, Row, gains, run
from losses import tokens
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import patch_model
from hf_masking.training import TrainingSettings, finetune

SEEDS, STEPS = 3, 600
# The windows of the layers, from the first to the last.
PROFILES = {
    "growing": (4, 8, 16, 32),
    "shrinking": (32, 16, 8, 4),
    "mixed": (8, 32, 4, 16),
    "mixed, backwards": (16, 4, 32, 8),
}
WIDTHS = {"narrow": (4, 4, 4, 4), "equal": (15, 15, 15, 15), "wide": (60, 60, 60, 60)}
SETTINGS = TrainingSettings(
    context=512, steps=STEPS, batch_size=4, learning_rate=4e-3, warmup_steps=20, eval_every=STEPS
)
CONFIG = LlamaConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    initializer_range=0.05,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)


def measure() -> Iterator[Row]:
    learn, held_out = tokens(STEPS * 4 * 512 + 1, 64 * 512 + 1)
    for seed in range(SEEDS):
        for name, windows in (WIDTHS | PROFILES).items():
            if name in WIDTHS and seed:
                continue  # what they differ by is far beyond what seeds do
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(CONFIG)
            by_layer = {layer: f"window:{window}" for layer, window in enumerate(windows)}
            patch_model(model, "causal", layers=by_layer, check=False)
            trained = finetune(model, learn, held_out, dataclasses.replace(SETTINGS, seed=seed))
            loss = math.log(trained.evaluations[STEPS])
            yield {"mask": name, "windows": " ".join(map(str, windows)), "seed": seed, "loss": loss}


def judge(rows: list[Row]) -> list[Claim]:
    narrow, equal, wide = (
        next(row["loss"] for row in rows if row["mask"] == name and row["seed"] == 0)
        for name in ("narrow", "equal", "wide")
    )
    growing, error = gains(rows, "growing", "shrinking", "loss")
    mixed, mixed_error = gains(rows, "mixed", "mixed, backwards", "loss")
    return [
        Claim(
            "wider is better: 4, 15 and 60 keys in all layers",
            f"losses of {narrow:.3f}, {equal:.3f} and {wide:.3f} nats",
            narrow > equal > wide,
        ),
        Claim(
            "growing beats shrinking, by more than twice the error",
            f"its loss is {growing:.2f}% ± {error:.2f}% lower",
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
        axes.plot(
            [names.index(row["mask"]) for row in chosen], [row["loss"] for row in chosen], "o", label=f"seed {seed}"
        )
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(ylabel="loss, nats a token")


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
