"""Show what each layer of a patched model lets each token see, with left padding and the model's own window.

python examples/what_a_token_sees.py
"""

import torch
from transformers import AutoModelForCausalLM, MistralConfig

from hf_masking import check_model, effective_mask, patch_model

torch.manual_seed(0)
config = MistralConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=8,  # the model's own window: it is intersected with the mask
    bos_token_id=None,
    eos_token_id=None,
)
model = AutoModelForCausalLM.from_config(config).eval()
patch_model(model, "window:4|sinks:2", layers={-1: "strided:3"})

attention_mask = torch.ones(1, 14, dtype=torch.long)
attention_mask[0, :3] = 0  # three pads on the left: positions count from the first real token
layers = effective_mask(model, input_ids=torch.randint(100, (1, 14)), attention_mask=attention_mask)
for index, allowed in enumerate(layers):
    print(f"layer {index}")
    for row in allowed[0].tolist():
        print(" ", " ".join("■" if pair else "·" for pair in row))

print(check_model(model))
