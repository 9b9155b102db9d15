"""Train heads that learn how far they look, with a penalty on their spans.

With probability 0.9 a token of the text repeats the one 20 tokens before it. To predict it, one head has to look back
20 tokens, and none has to look further. All heads start with spans as long as the context.

python examples/adaptive_span.py [steps]    # the 600 by default take a few minutes
"""

import sys

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel

from hf_masking import mask_penalties, patch_model

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
TOKENS, PERIOD, LENGTH, BATCH, PENALTY = 32, 20, 256, 8, 0.3


def batch(draw: torch.Generator) -> torch.Tensor:
    tokens = torch.randint(TOKENS, (BATCH, LENGTH), generator=draw)
    repeats = torch.rand(BATCH, LENGTH, generator=draw) < 0.9
    for i in range(PERIOD, LENGTH):
        tokens[:, i] = torch.where(repeats[:, i], tokens[:, i - PERIOD], tokens[:, i])
    return tokens


def spans(model: PreTrainedModel) -> list[list[int]]:
    """Return the span of each head, by layer."""
    shares = [share for name, share in model.named_parameters() if name.endswith("hf_masking.adaptive_span.share")]
    return [(share.clamp(0, 1) * LENGTH).round().int().tolist() for share in shares]


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
model = patch_model(AutoModelForCausalLM.from_config(config), f"adaptive_span:max={LENGTH},ramp=16")
print("spans at the start", spans(model))
learned = [parameter for name, parameter in model.named_parameters() if ".hf_masking." in name]
others = [parameter for name, parameter in model.named_parameters() if ".hf_masking." not in name]
optimizer = torch.optim.AdamW(
    [{"params": others, "lr": 3e-3}, {"params": learned, "lr": 1e-2, "weight_decay": 0.0}], weight_decay=0.01
)
draw = torch.Generator().manual_seed(1)
for step in range(STEPS):
    tokens = batch(draw)
    with mask_penalties() as penalties:
        loss = model(tokens, labels=tokens, use_cache=False).loss
    (loss + PENALTY * torch.stack(penalties).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    if (step + 1) % 100 == 0:
        print(f"step {step + 1}: loss {loss.item():.3f}, spans {spans(model)}", flush=True)

cache = DynamicCache(config=model.config)
prompt = batch(draw)[:1, :200]
model.eval().generate(
    prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, max_new_tokens=50, do_sample=False
)
print("keys that the cache retains of 249:", [len(layer.columns) for layer in cache.layers])
