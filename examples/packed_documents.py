"""Pack several documents into one row: each is computed as if it were alone, in training too.

python examples/packed_documents.py
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import patch_model

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=None,
)
model = patch_model(AutoModelForCausalLM.from_config(config), "window:4|sinks:1")

documents = [torch.randint(100, (1, length)) for length in (7, 12, 5)]
packed = torch.cat(documents, dim=1)
# Documents start where position ids restart; document_ids= marks them explicitly.
position_ids = torch.cat([torch.arange(document.shape[1]) for document in documents])[None]

together = model(packed, position_ids=position_ids).logits
alone = torch.cat([model(document).logits for document in documents], dim=1)
print(f"largest difference between packed and alone: {(together - alone).abs().max():.1e}")
assert torch.allclose(together, alone, atol=1e-4)

together.logsumexp(-1).sum().backward()
print("and it trains: gradient norm", f"{torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]):.2f}")
