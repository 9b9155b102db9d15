"""E1: what a block mask with look-ahead does to measured perplexity, and what the same weights write.

Published: no paper of a causal model reports it as a result, many a code base has had it as a bug; the arithmetic is
plain. In a block of b tokens that see each other all predictions but the last are of a token that is in sight. Once the
model has learnt to copy it, the mean loss is that of the last ones over b: H/b.

Expected before the run: after 300 steps the loss under look-ahead is within a quarter of H/b, for b = 4, 16, 64; the
same weights, read as decoding reads them (`causal`), are worse by a factor of at least 3. A first run, of half
as many steps at a third of the learning rate, had not learnt to copy (1.56 nats instead of 0.73 for b = 4).
Control, which must show nothing: the same fine-tuning with only the last token of each block as a label, and causal
local blocks, both of 16 tokens. Neither loss of the last tokens falls by more than a tenth below full attention's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from base import base_model
from lab import Claim, Row, run
from learning import learn
from losses import losses, tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_masking import parse_mask, patch_model, patched
from hf_masking.modeling import load
from hf_masking.pictures import colour_of, log_scale
from hf_masking.training import Contexts
from hf_masking.training.data import IGNORED

CONTEXT, STEPS, BATCH = 256, 300, 4
BLOCKS, CONTROL = (4, 16, 64), 16


def measure() -> Iterator[Row]:
    train, held_out = (Contexts.pack(ids, CONTEXT) for ids in tokens(1_000_000, 48 * CONTEXT + 1))
    everything = torch.ones(CONTEXT, dtype=torch.bool)
    for block in BLOCKS:
        last = torch.arange(CONTEXT) % block == block - 1
        tried = [(f"block_causal:{block}", "all", everything)]
        if block == CONTROL:
            tried += [
                (f"block_causal:{block}", "last of each block", last),
                (f"block_local:{block},1", "all", everything),
            ]
        for mask, labels, where in tried:
            model = load(str(base_model()))
            untouched = loss(model, held_out, last)
            finetune(patch_model(model, mask, check=False), train, where)
            row = {"mask": mask, "labels": labels, "block": block, "loss measured": loss(model, held_out, everything)}
            row |= {"of the last tokens": loss(model, held_out, last), "under full attention": untouched}
            # What comes later is not there yet when a token is written.
            with patched(model, mask if not parse_mask(mask).union.lookahead else "causal", check=False):
                yield row | {"as decoded": loss(model, held_out, everything)}


def finetune(model: PreTrainedModel, contexts: Contexts, where: Tensor) -> None:
    """On the labels at these places of a context; `hf_masking.training.finetune` refuses to, as it should."""
    steps = iter(range(STEPS))

    def of_next_batch() -> Tensor:
        batch = contexts.batch(contexts.indices(next(steps), BATCH, seed=0))
        logits = model(batch["input_ids"], use_cache=False).logits
        labels = batch["labels"].where(where, IGNORED)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    torch.manual_seed(0)
    learn(model, of_next_batch, STEPS, 3e-3, weight_decay=0.1, clip=1.0)


def loss(model: PreTrainedModel, contexts: Contexts, where: Tensor) -> float:
    return float(losses(model, contexts)[:, where].mean())


def judge(rows: list[Row]) -> list[Claim]:
    def of(mask: str, labels: str) -> list[Row]:
        return [row for row in rows if row["mask"].startswith(mask) and row["labels"] == labels]

    ahead = of("block_causal", "all")
    ratios = [row["loss measured"] * row["block"] / row["of the last tokens"] for row in ahead]
    honest = [
        row["of the last tokens"] / row["under full attention"] for row in of("block_causal", "last of each block")
    ]
    causal = [row["of the last tokens"] / row["under full attention"] for row in of("block_local", "all")]
    return [
        Claim(
            "the loss under look-ahead is H/b, within a quarter",
            "it is " + ", ".join(f"{ratio:.2f}" for ratio in ratios) + " of H/b for b = 4, 16, 64",
            all(0.75 <= ratio <= 1.25 for ratio in ratios),
        ),
        Claim(
            "as decoding reads them the same weights are worse than that by a factor of at least 3",
            "the loss is " + ", ".join(f"{row['as decoded'] / row['loss measured']:.0f}" for row in ahead) + " times",
            all(row["as decoded"] > 3 * row["loss measured"] for row in ahead),
        ),
        Claim(
            "control: trained on the last tokens of the blocks only, their loss does not fall by more than a tenth",
            "it becomes " + ", ".join(f"{ratio:.2f}" for ratio in honest) + " of it",
            all(ratio > 0.9 for ratio in honest),
        ),
        Claim(
            "control: nor does it under causal local blocks",
            "it becomes " + ", ".join(f"{ratio:.2f}" for ratio in causal) + " of it",
            all(ratio > 0.9 for ratio in causal),
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for mask, labels, name in (
        ("block_causal", "all", "look-ahead, as measured"),
        ("block_causal", "last of each block", "look-ahead, last tokens only"),
        ("block_local", "all", "causal local blocks"),
    ):
        chosen = [row for row in rows if row["mask"].startswith(mask) and row["labels"] == labels]
        figure = "of the last tokens" if "last" in labels else "loss measured"
        style = "o:" if "last" in labels else "o-"
        axes.plot(
            [row["block"] for row in chosen], [row[figure] for row in chosen], style, label=name, color=colour_of(mask)
        )
    ahead = [row for row in rows if row["mask"].startswith("block_causal") and row["labels"] == "all"]
    blocks = [row["block"] for row in ahead]
    decoded = [row["as decoded"] for row in ahead]
    axes.plot(blocks, decoded, "x--", label="look-ahead, decoded", color=colour_of("block_causal"))
    axes.plot(blocks, [row["of the last tokens"] / row["block"] for row in ahead], "k:", label="H/b")
    axes.set(title="Look-ahead: the loss measured and the loss decoded", xlabel="tokens in a block")
    axes.set(ylabel="loss (nats per token)")
    log_scale(axes.xaxis, blocks)
    log_scale(axes.yaxis, (0.03, 0.1, 0.3, 1, 3, 10))


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
