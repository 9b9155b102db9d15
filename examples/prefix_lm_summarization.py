"""Compare a prefix LM with a causal LM on a task that needs both directions: the key of a text follows the text.

A text consists of code words. The key after it gives the meaning of each word in this text, and the answer is the
meaning that occurs most often. Under `prefix|causal` every word attends to the key, so the answer only has to count
meanings. Under `causal` the words come before the key, and the one token that answers has to decode all of them. Both
models start with the same weights and see the same texts.

python examples/prefix_lm_summarization.py [steps]    # the 1,000 by default take a few minutes
"""

import sys

import torch
from torch.nn.functional import one_hot
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hf_masking import patch_model
from hf_masking.training import labels_for_prefix_lm

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
WORDS, CODES, MEANINGS, BATCH = 24, 12, 3, 64
# Tokens: the question, the code words, the entries of keys (a code word and its meaning), the meanings.
ASK, CODE, ENTRY, MEANING = 0, 1, 1 + CODES, 1 + CODES + CODES * MEANINGS


def batch(draw: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Return texts with their answers [B, N], and the lengths of the prompts."""
    text = torch.randint(CODES, (BATCH, WORDS), generator=draw)
    meanings = torch.randint(MEANINGS, (BATCH, CODES), generator=draw)
    order = torch.rand(BATCH, CODES, generator=draw).argsort(1)
    key = (torch.arange(CODES) * MEANINGS + meanings).gather(1, order)
    counts = one_hot(meanings.gather(1, text), MEANINGS).sum(1) + 0.5 * torch.rand(BATCH, MEANINGS, generator=draw)
    question, answer = torch.full((BATCH, 1), ASK), counts.argmax(1, keepdim=True) + MEANING
    tokens = torch.cat([text + CODE, key + ENTRY, question, answer], dim=1)
    return tokens, [tokens.shape[1] - 1] * BATCH


def train(model: torch.nn.Module, takes_prefix: bool) -> float:
    draw, losses = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        tokens, lengths = batch(draw)
        prefix = {"prefix_lengths": lengths} if takes_prefix else {}
        loss = model(tokens, labels=labels_for_prefix_lm(lengths, tokens), use_cache=False, **prefix).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def accuracy(model: PreTrainedModel) -> float:
    """Return the share of texts for which `generate` writes the right answer; the prompt is the prefix."""
    draw, right = torch.Generator().manual_seed(2), 0.0
    for _ in range(8):
        tokens, (length, *_) = batch(draw)
        everything = torch.ones(BATCH, length, dtype=torch.long)
        written = model.eval().generate(
            tokens[:, :length], attention_mask=everything, max_new_tokens=1, do_sample=False
        )
        right += float((written == tokens).all(-1).float().mean()) / 8
    return right


config = LlamaConfig(
    vocab_size=MEANING + MEANINGS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=None, eos_token_id=None, pad_token_id=ASK,
)  # fmt: skip
for mask in ("causal", "prefix|causal"):
    torch.manual_seed(0)
    model = patch_model(AutoModelForCausalLM.from_config(config), mask)
    loss = train(model, mask != "causal")
    print(f"{mask:>14}: loss {loss:.3f}, right answers {accuracy(model):.0%}", flush=True)
