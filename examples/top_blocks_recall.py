"""Compare masks on associative recall at an eighth of the keys, without training under the mask.

A text binds values to keys, and then asks for the value of each key, in another order. A model learns the task under
full attention. Then it answers under masks that let each query see 16 of 128 keys: the last 16, the first 4 and the
last 12, or its own block of 4 and 3 more that it selects by content.

python examples/top_blocks_recall.py [steps]    # the 600 by default take a minute or two
"""

import sys

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import patched

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
KEYS, VALUES, BUDGET, BATCH = 64, 8, 16, 32
MASKS = {
    "all keys": "causal",
    "a window": "window:16",
    "a window and sinks": "window:12|sinks:4",
    "blocks, chosen by mean": "top_blocks:block=4,k=3,score=mean",
    "blocks, chosen by minmax": "top_blocks:block=4,k=3,score=minmax",
}


def batch(draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return bindings (one token per key and value) and questions [B, 2 * KEYS], the answers, and their distances."""
    keys, order = (torch.rand(BATCH, KEYS, generator=draw).argsort(1) for _ in range(2))
    values = torch.randint(VALUES, keys.shape, generator=draw)
    tokens = torch.cat([keys * VALUES + values, keys.gather(1, order) + KEYS * VALUES], dim=1)
    return tokens, values.gather(1, order), torch.arange(KEYS, 2 * KEYS) - order


def answers(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the scores of the values at each question [B, KEYS, VALUES]."""
    return model(tokens, use_cache=False).logits[:, KEYS:, :VALUES]


def train(model: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        tokens, right, _ = batch(draw)
        loss = cross_entropy(answers(model, tokens).flatten(0, 1), right.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """Return the accuracy on bindings that are further back than the window reaches."""
    draw, correct, asked = torch.Generator().manual_seed(2), 0, 0
    for _ in range(10):
        tokens, right, distance = batch(draw)
        far = distance >= BUDGET
        correct += int(((answers(model, tokens).argmax(-1) == right) & far).sum())
        asked += int(far.sum())
    return correct / asked


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=KEYS * VALUES + KEYS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    initializer_range=0.1, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config)
train(model)
model.eval()
print(f"| what a query sees | mask | right answers (chance: {1 / VALUES:.1%}) |\n|---|---|---:|")
for name, mask in MASKS.items():
    with patched(model, mask, check=False):
        spec = mask.replace("|", "\\|")
        print(f"| {name} | `{spec}` | {accuracy(model):.1%} |", flush=True)
