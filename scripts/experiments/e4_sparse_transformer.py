"""E4: dense, fixed and strided attention, the two patterns of the Sparse Transformer, at equal pairs.

Published (Child et al. 2019, arXiv:1904.10509, Table 2): on text (enwik8, bits a byte) fixed 0.99 and dense 1.00
beat strided 1.13; on images (CIFAR-10, bits a dimension) strided 2.80 beats dense 2.82 and fixed 2.85.

Expected before the run: on text, after a fine-tuning of the base model, fixed beats strided, and dense is not worse
than both. A window of as many pairs is measured beside them, about which the paper says nothing.
Control, which must turn the order around: rows of an image, in which a token most often is the one right above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lab import Claim, Row, gains, lower, run
from learning import learn
from losses import tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig
from tuning import tuned

from hf_masking import parse_mask, patch_model
from hf_masking.masks.counting import density
from hf_masking.training import TrainingSettings

CONTEXT, STEPS, SEEDS = 512, 60, 5
MASKS = {
    "dense": "causal",
    "fixed": "block_local:64|summary:64,2",
    "strided": "window:33|strided:32",
    "window": "window:41",
}
WIDTH, COLOURS = 32, 16  # of the image


def measure() -> Iterator[Row]:
    train, held_out = tokens(700_000, 64 * CONTEXT + 1)
    for seed in range(SEEDS):
        settings = TrainingSettings(
            context=CONTEXT, steps=STEPS, batch_size=4, warmup_steps=10, eval_every=STEPS, seed=seed
        )
        for name, mask in MASKS.items():
            yield _row("text", name, seed, tuned(mask, settings, train, held_out)[STEPS])
    for seed in range(SEEDS):
        for name, mask in MASKS.items():
            yield _row("image", name, seed, of_images(mask, seed))


def _row(data: str, name: str, seed: int, loss: float) -> Row:
    spec = MASKS[name]
    return {"data": data, "sees": name, "mask": spec, "pairs": density(parse_mask(spec), CONTEXT), "seed": seed} | {
        "loss": loss
    }


def images(draw: torch.Generator, count: int) -> Tensor:
    """Row by row ``[count, CONTEXT + 1]``: nine of ten tokens are the one right above."""
    tokens = torch.randint(COLOURS, (count, CONTEXT + 1), generator=draw)
    copied = torch.rand(count, CONTEXT + 1, generator=draw) < 0.9
    for place in range(WIDTH, CONTEXT + 1):
        tokens[:, place] = torch.where(copied[:, place], tokens[:, place - WIDTH], tokens[:, place])
    return tokens


def of_images(mask: str, seed: int) -> float:
    """The loss of a small model that learns images under the mask, past the first row."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=COLOURS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = patch_model(AutoModelForCausalLM.from_config(config), mask, check=False)
    draw = torch.Generator().manual_seed(seed)

    def of_next_batch() -> Tensor:
        batch = images(draw, 16)
        logits = model(batch[:, :-1], use_cache=False).logits[:, WIDTH:]
        return F.cross_entropy(logits.flatten(0, 1), batch[:, WIDTH + 1 :].flatten())

    return learn(model, of_next_batch, 200, 3e-3)


def judge(rows: list[Row]) -> list[Claim]:
    text = [row | {"mask": row["sees"]} for row in rows if row["data"] == "text"]
    image = [row | {"mask": row["sees"]} for row in rows if row["data"] == "image"]
    fixed, error = gains(text, "fixed", "strided", "loss")
    dense, dense_error = gains(text, "dense", "fixed", "loss")
    turned, turned_error = gains(image, "strided", "fixed", "loss")
    window, window_error = gains(text, "window", "fixed", "loss")
    return [
        Claim(
            "on text fixed beats strided",
            f"its loss is {lower(fixed, error)}",
            fixed > max(2 * error, 0.3),
        ),
        Claim(
            "on text dense is not worse than fixed",
            f"its loss is {lower(dense, dense_error)}; that of the window is {lower(window, window_error)} than fixed",
            dense > -2 * dense_error,
        ),
        Claim(
            "control: on images strided beats fixed",
            f"its loss is {lower(turned, turned_error)}",
            turned > 2 * turned_error,
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    names = list(MASKS)
    for data, marker in (("text", "o"), ("image", "x")):
        chosen = [row for row in rows if row["data"] == data]
        axes.plot([names.index(row["sees"]) for row in chosen], [row["loss"] for row in chosen], marker, label=data)
    axes.set_xticks(range(len(names)), names)
    axes.set(title="The patterns of the Sparse Transformer on text and images", ylabel="loss (nats per token)")


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
