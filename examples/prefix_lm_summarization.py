"""A task that needs both directions: keep the words of the sentences that end in "!". Causal against prefix.

What a word is worth is said by the mark behind it. Under `prefix|causal` a word of the prompt sees that mark when it is
read; under `causal` it does not, and all is left to the words of the summary. Both models start with the same weights
and see the same prompts.

python examples/prefix_lm_summarization.py
"""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hf_masking import patch_model
from hf_masking.training import labels_behind

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
START, STOP, DOT, BANG, WORDS = 0, 1, 2, 3, 40
SENTENCES, LENGTH, BATCH = 4, 3, 64


def batch(draw: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Prompts and their summaries [B, N], and where the prompts end: they are all equally long, the summaries not."""
    words = torch.randint(BANG + 1, WORDS, (BATCH, SENTENCES, LENGTH), generator=draw)
    loud = torch.rand(BATCH, SENTENCES, generator=draw) < 0.5
    prompts = torch.cat([words, torch.where(loud, BANG, DOT)[..., None]], -1).flatten(1)
    summaries = torch.full((BATCH, SENTENCES * LENGTH + 2), STOP)
    summaries[:, 0] = START
    for summary, row, kept in zip(summaries, words, loud, strict=True):
        summary[1 : int(kept.sum()) * LENGTH + 1] = row[kept].flatten()
    return torch.cat([prompts, summaries], 1), [prompts.shape[1] + 1] * BATCH


def train(model: torch.nn.Module, takes_prefix: bool) -> float:
    draw, losses = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        tokens, lengths = batch(draw)
        prefix = {"prefix_lengths": lengths} if takes_prefix else {}
        loss = model(tokens, labels=labels_behind(lengths, tokens), use_cache=False, **prefix).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def accuracy(model: PreTrainedModel) -> float:
    """The share of summaries that `generate` writes without a mistake; there the prompt is the prefix."""
    tokens, (length, *_) = batch(torch.Generator().manual_seed(2))
    written = model.eval().generate(
        tokens[:, :length], max_new_tokens=tokens.shape[1] - length, eos_token_id=None, do_sample=False
    )
    return float((written == tokens).all(-1).float().mean())


config = LlamaConfig(
    vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=None, eos_token_id=None, pad_token_id=STOP,
)  # fmt: skip
for mask in ("causal", "prefix|causal"):
    torch.manual_seed(0)
    model = patch_model(AutoModelForCausalLM.from_config(config), mask)
    loss = train(model, mask != "causal")
    print(f"{mask:>14}: loss {loss:.3f}, summaries without a mistake {accuracy(model):.0%}", flush=True)
