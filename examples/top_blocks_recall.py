"""Associative recall at an eighth of the keys: what a query may see decides whether it finds what it looks for.

A model learns, under full attention, to read pairs of a key and a value and to answer with the value when a key comes
again. Then it answers under masks that let each query see 16 of 128 keys, without any further training: the last 16,
the first 4 and the last 12, or 3 blocks of 4 that the query chooses by content and its own.

python examples/top_blocks_recall.py [steps]    # the 2,000 by default take some minutes
"""

import sys

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import patched

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
KEYS, VALUES, PAIRS, BATCH = 64, 16, 32, 32
MASKS = {
    "all keys": "causal",
    "window": "window:16",
    "window and sinks": "window:12|sinks:4",
    "blocks chosen by mean": "top_blocks:block=4,k=3,score=mean",
    "blocks chosen by minmax": "top_blocks:block=4,k=3,score=minmax",
}


def batch(draw: torch.Generator) -> torch.Tensor:
    """Pairs of different keys and their values, and the same pairs in another order [B, 4 * PAIRS]."""
    keys = torch.rand(BATCH, KEYS, generator=draw).argsort(1)[:, :PAIRS]
    pairs = torch.stack([keys, torch.randint(VALUES, keys.shape, generator=draw) + KEYS], dim=-1)
    again = torch.rand(BATCH, PAIRS, generator=draw).argsort(1)[..., None].expand(-1, -1, 2)
    return torch.cat([pairs, pairs.gather(1, again)], dim=1).flatten(1)


def answers(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model predicts behind the keys that come again, and what would be right."""
    logits = model(tokens, use_cache=False).logits
    return logits[:, 2 * PAIRS :: 2], tokens[:, 2 * PAIRS + 1 :: 2]


def train(model: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        predicted, right = answers(model, batch(draw))
        loss = cross_entropy(predicted.flatten(0, 1), right.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    draw, shares = torch.Generator().manual_seed(2), []
    for _ in range(10):
        predicted, right = answers(model, batch(draw))
        shares.append((predicted.argmax(-1) == right).float().mean())
    return float(torch.stack(shares).mean())


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=KEYS + VALUES, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config)
train(model)
model.eval()
print(f"| what a query sees | mask | right answers (chance: {1 / VALUES:.0%}) |\n| --- | --- | ---: |")
for name, mask in MASKS.items():
    with patched(model, mask, check=False):
        print(f"| {name} | `{mask}` | {accuracy(model):.1%} |", flush=True)
