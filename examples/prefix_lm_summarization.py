"""Who signed the part of a letter in which a word stands? Each part is signed at its end: causal against prefix.

Under `prefix|causal` a word of the letter sees the signature behind it when it is read, and the answer only has to look
the word up; under `causal` the word has been read before anybody signed. Both models start with the same weights and
see the same letters. The gain is small at this size (69% against 61% right after 1,500 steps): under a causal mask the
signature can gather the words before it, and the answer can look there.

python examples/prefix_lm_summarization.py [steps]    # the 1,500 by default take some minutes
"""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from hf_masking import patch_model
from hf_masking.training import labels_behind

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
ASK, AUTHORS, WORDS = 0, 8, 32  # tokens: the question, then the authors, then the words
PARTS, LENGTH, BATCH = 4, 20, 64


def letter(draw: torch.Generator) -> list[int]:
    """Words in parts of any length, each with its author behind it; then a word, and who signed its part."""
    words = (torch.randperm(WORDS, generator=draw)[:LENGTH] + 1 + AUTHORS).tolist()
    authors = (torch.randperm(AUTHORS, generator=draw)[:PARTS] + 1).tolist()
    cuts = sorted((torch.randperm(LENGTH - 1, generator=draw)[: PARTS - 1] + 1).tolist())
    parts = [words[first:stop] for first, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True)]
    asked = int(torch.randint(LENGTH, (), generator=draw))
    answer = authors[sum(cut <= asked for cut in cuts)]
    signed = [token for part, author in zip(parts, authors, strict=True) for token in (*part, author)]
    return [*signed, ASK, words[asked], answer]


def batch(draw: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Letters with their answers [B, N], and where the prompts end."""
    letters = torch.tensor([letter(draw) for _ in range(BATCH)])
    return letters, [letters.shape[1] - 1] * BATCH


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
    """The share of letters for which `generate` names the right author; there the prompt is the prefix."""
    tokens, (length, *_) = batch(torch.Generator().manual_seed(2))
    everything = torch.ones(BATCH, length, dtype=torch.long)
    written = model.eval().generate(tokens[:, :length], attention_mask=everything, max_new_tokens=1, do_sample=False)
    return float((written == tokens).all(-1).float().mean())


config = LlamaConfig(
    vocab_size=1 + AUTHORS + WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    bos_token_id=None, eos_token_id=None, pad_token_id=ASK,
)  # fmt: skip
for mask in ("causal", "prefix|causal"):
    torch.manual_seed(0)
    model = patch_model(AutoModelForCausalLM.from_config(config), mask)
    loss = train(model, mask != "causal")
    print(f"{mask:>14}: loss {loss:.3f}, right answers {accuracy(model):.0%}", flush=True)
