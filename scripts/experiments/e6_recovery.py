"""E6: how fast a fine-tuning recovers what a mask has cost, for the masks of the catalogue.

Published: no table of the whole catalogue. StreamingLLM (arXiv:2309.17453) needs no fine-tuning with sinks; LongLoRA
(arXiv:2309.12307) and SWA conversions report that a thousand steps recover most of what a local pattern costs.

Expected before the run: what a mask costs (its loss less that of full attention after as many steps) falls by at least
half in 300 steps, for each mask; and the sinks, which help a window before any fine-tuning, no longer do after 1,000
steps (less than a third of their help is left).
Control, which must show nothing: full attention, whose loss changes by less than a tenth of what the masks recover.
A first run, with 512 tokens a step and twice the learning rate, would have taken three quarters of an hour and was
stopped after full attention, whose loss had risen from 2.502 to 2.544: the text it learns from is one it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lab import Claim, Row, run
from losses import tokens
from tuning import tuned

from hf_masking.pictures import colour_of, log_scale
from hf_masking.training import TrainingSettings

CONTEXT, POINTS = 256, (0, 100, 300, 1000)
MASKS = (
    "causal",
    "window:32",
    "window:28|sinks:4",
    "block_local:32,1",
    "strided:16|window:16",
    "dilated:32,4",
    "log_sparse",
    "block_local:32|summary:32,4",
    "top_blocks:block=16,k=2",
)
SETTINGS = TrainingSettings(
    context=CONTEXT, steps=max(POINTS), batch_size=1, learning_rate=1e-4, warmup_steps=20, eval_every=100
)


def measure() -> Iterator[Row]:
    train, held_out = tokens(SETTINGS.steps * CONTEXT + 1, 48 * CONTEXT + 1)
    for mask in MASKS:
        losses = tuned(mask, SETTINGS, train, held_out)
        yield {"mask": mask} | {f"{steps:,} steps": losses[steps] for steps in POINTS}


def _costs(rows: list[Row]) -> dict[str, list[float]]:
    """Return what each mask costs at each point, in nats per token."""
    causal = rows[0]
    return {row["mask"]: [row[f"{n:,} steps"] - causal[f"{n:,} steps"] for n in POINTS] for row in rows[1:]}


def judge(rows: list[Row]) -> list[Claim]:
    costs = _costs(rows)
    left = {mask: cost[2] / cost[0] for mask, cost in costs.items()}
    worst = max(left, key=lambda mask: left[mask])
    before, after = (costs["window:32"][point] - costs["window:28|sinks:4"][point] for point in (0, 3))
    recovered = min(cost[0] - cost[3] for cost in costs.values())
    causal = rows[0]["0 steps"] - rows[0]["1,000 steps"]
    return [
        Claim(
            "after 300 steps at most half of what each mask cost is left",
            f"the most is left of `{worst}`, {left[worst]:.0%}",
            left[worst] <= 0.5,
        ),
        Claim(
            "after 1,000 steps less than a third of the help of sinks is left",
            f"it was {before:.3f} nats and is {after:.3f}",
            before > 0 and after < before / 3,
        ),
        Claim(
            "control: the loss of full attention changes by less than a tenth of what any mask recovers",
            f"it falls by {causal:.3f} nats, and that of the masks recovers {recovered:.3f} at least",
            abs(causal) < recovered / 10,
        ),
    ]


def draw(axes: Any, rows: list[Row]) -> None:
    for mask, cost in _costs(rows).items():
        axes.plot(range(len(POINTS)), cost, "o-", label=mask, color=colour_of(mask))
    axes.set_xticks(range(len(POINTS)), [f"{steps:,}" for steps in POINTS])
    axes.set(title="What fine-tuning recovers", xlabel="steps of fine-tuning")
    axes.set(ylabel="loss above full attention (nats per token)")
    log_scale(axes.yaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1))


if __name__ == "__main__":
    run(__file__, measure, judge, draw)
