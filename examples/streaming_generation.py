"""Generate 100,000 tokens in constant memory, at a constant time per token.

Keys keep their true positions, and every token is exactly what recomputation under the mask would give. This does not
extend what the model can see; the mask still bounds that: a window and the first tokens.

python examples/streaming_generation.py [tokens]    # the 100,000 by default take a few minutes
"""

import resource
import sys
import time
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from hf_masking import patch_model

TOKENS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
PARTS = 10

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    initializer_range=0.3, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = patch_model(AutoModelForCausalLM.from_config(config).eval(), "window:256|sinks:4")


def stream(prompt: torch.Tensor, cache: DynamicCache) -> Iterator[int]:
    """Yield one token after another; `generate(..., streamer=...)` does it too, but keeps the whole text."""
    tokens = prompt
    while True:
        logits = model(tokens, past_key_values=cache).logits[:, -1]
        tokens = logits.softmax(-1).multinomial(1)
        yield int(tokens)


def resident_kib() -> int:
    """Return the resident memory of the process; where the system does not report it, the peak."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


cache = DynamicCache()
with torch.inference_mode():
    written = stream(torch.randint(256, (1, 16)), cache)
    for _ in range(1000):  # until the window is full and everything is warm
        next(written)
    before = resident_kib()
    for _ in range(PARTS):
        started = time.perf_counter()
        for _ in range(TOKENS // PARTS):
            next(written)
        milliseconds = (time.perf_counter() - started) / (TOKENS // PARTS) * 1000
        print(
            f"{cache.get_seq_length():>8,} tokens: {milliseconds:.2f} ms per token, "
            f"{len(cache.layers[0].columns)} keys retained, {resident_kib() - before:+,} KiB since the start",
            flush=True,
        )
