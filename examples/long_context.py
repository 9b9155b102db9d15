"""Do one training step over 131,072 tokens on a CPU, and print what dense attention would need.

python examples/long_context.py [LENGTH]
"""

import sys
import time

import torch
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from hf_masking import parse_mask, patch_model
from hf_masking.evaluation import peak_memory
from hf_masking.plan import Lengths, plan_of

MASK = "window:256|sinks:4"
LENGTH = int(sys.argv[1]) if len(sys.argv) > 1 else 131_072
CHUNK = 4096  # tokens whose logits exist at the same time


def chunk_loss(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")


def loss_in_chunks(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean loss. Logits are computed chunk by chunk, and again in the backward pass, to save memory."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1]
    pairs = zip(hidden.split(CHUNK), tokens[0, 1:].split(CHUNK), strict=True)
    losses = [checkpoint(chunk_loss, model.lm_head, h, t, use_reentrant=False) for h, t in pairs]
    return torch.stack(losses).sum() / (tokens.shape[1] - 1)


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=LENGTH,
)
model = LlamaForCausalLM(config).train()
patch_model(model, MASK)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.randint(config.vocab_size, (1, LENGTH))

started = time.perf_counter()
loss = loss_in_chunks(model, tokens)
loss.backward()
optimizer.step()
seconds = time.perf_counter() - started

plan = plan_of(parse_mask(MASK).union, Lengths(0, LENGTH, 0, LENGTH))
scores = LENGTH**2 * config.num_attention_heads * 4
print(f"{MASK}, {LENGTH:,} tokens: loss {loss.item():.3f} after one step of {seconds:.1f} s")
print(f"peak memory {peak_memory() / 2**30:.1f} GiB; the scores of one dense layer alone: {scores / 2**30:,.0f} GiB")
print(f"pairs computed for each head: {plan.touched:,}; dense causal attention: {LENGTH * (LENGTH + 1) // 2:,}")
