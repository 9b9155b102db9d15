"""E8: prefix-LM against causal on a task that needs both directions.

Published (Raffel et al. 2019, T5, arXiv:1910.10683, Table 2): with the same decoder, a bidirectional prefix
beats a causal mask on every downstream task. Wang et al. (2022, arXiv:2204.05832) find the same after multitask
fine-tuning, and the reverse zero-shot after plain pretraining.

The task: a text in code words, and the key to them; which meaning is the most frequent? The key stands behind the text:
only a word that sees what comes later knows what it means when it is read.

Expected before the run: under `prefix|causal` at least 15 points more right answers, at each seed.
Control, which must show less than a third of that: the key stands before the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lab import Claim, Row, run
from learning import learn
from torch.nn.functional import one_hot
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hf_masking import patch_model
from hf_masking.pictures import colour_of
from hf_masking.training import labels_for_prefix_lm

SEEDS, STEPS, BATCH = 3, 1000, 64
WORDS, CODES, MEANINGS = 24, 12, 3
# Tokens: the question, the code words, the entries of keys (a code word and its meaning), the meanings.
ASK, CODE, ENTRY, MEANING = 0, 1, 1 + CODES, 1 + CODES + CODES * MEANINGS


def texts(draw: torch.Generator, key_first: bool) -> torch.Tensor:
    """``[BATCH, N]``, the last token is the answer."""
    text = torch.randint(CODES, (BATCH, WORDS), generator=draw)
    meanings = torch.randint(MEANINGS, (BATCH, CODES), generator=draw)
    order = torch.rand(BATCH, CODES, generator=draw).argsort(1)
    key = (torch.arange(CODES) * MEANINGS + meanings).gather(1, order) + ENTRY
    # Ties are broken at random: no model is always right.
    counts = one_hot(meanings.gather(1, text), MEANINGS).sum(1) + 0.5 * torch.rand(BATCH, MEANINGS, generator=draw)
    parts = [key, text + CODE] if key_first else [text + CODE, key]
    return torch.cat([*parts, torch.full((BATCH, 1), ASK), counts.argmax(1, keepdim=True) + MEANING], dim=1)


def learnt(mask: str, key_first: bool, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=MEANING + MEANINGS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=ASK,
    )  # fmt: skip
    model = patch_model(AutoModelForCausalLM.from_config(config), mask)
    draw = torch.Generator().manual_seed(seed)

    def of_next_batch() -> torch.Tensor:
        tokens = texts(draw, key_first)
        lengths = [tokens.shape[1] - 1] * BATCH
        prefix = {"prefix_lengths": lengths} if mask != "causal" else {}
        loss: torch.Tensor = model(tokens, labels=labels_for_prefix_lm(lengths, tokens), use_cache=False, **prefix).loss
        return loss

    learn(model, of_next_batch, STEPS, 2e-3)
    return model.eval()


@torch.no_grad()
def right_answers(model: PreTrainedModel, key_first: bool) -> float:
    """Return the share of right answers in what `generate` writes, where the prompt is the prefix."""
    draw, shares = torch.Generator().manual_seed(1000), []
    for _ in range(16):
        tokens = texts(draw, key_first)
        prompt = tokens[:, :-1]
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False)
        shares.append(float((written[:, -1] == tokens[:, -1]).float().mean()))
    return sum(shares) / len(shares)


def measure() -> Iterator[Row]:
    for key_first in (False, True):
        for seed in range(SEEDS):
            for mask in ("causal", "prefix|causal"):
                share = right_answers(learnt(mask, key_first, seed), key_first)
                yield {"the key": "first" if key_first else "last", "mask": mask, "seed": seed, "right answers": share}


def _points(rows: list[Row], key: str) -> list[float]:
    """How many points the prefix gains, seed by seed."""
    chosen = [row for row in rows if row["the key"] == key]
    causal, prefix = (
        [row["right answers"] for row in chosen if row["mask"] == mask] for mask in ("causal", "prefix|causal")
    )
    return [100 * (after - before) for before, after in zip(causal, prefix, strict=True)]


def judge(rows: list[Row]) -> list[Claim]:
    needed, control = _points(rows, "last"), _points(rows, "first")
    return [
        Claim(
            "where the key stands last, a prefix gives at least 15 points more right answers at each seed",
            ", ".join(f"{gain:+.1f}" for gain in needed),
            min(needed) >= 15,
        ),
        Claim(
            "control: where the key stands first, less than a third of that",
            ", ".join(f"{gain:+.1f}" for gain in control),
            abs(sum(control)) < sum(needed) / 3,
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for mask in ("causal", "prefix|causal"):
        chosen = [row for row in rows if row["mask"] == mask]
        places = [("last", "first").index(row["the key"]) for row in chosen]
        right, marker = [row["right answers"] for row in chosen], "o" if mask == "causal" else "x"
        axes.plot(places, right, marker, label=mask, color=colour_of(mask))
    axes.set_xticks((0, 1), ("key after the text", "key before the text"))
    axes.set(title="A bidirectional prefix", ylim=(0, 1.05), xlim=(-0.5, 1.5), ylabel="right answers")


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
