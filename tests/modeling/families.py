"""Tiny decoders from configs, with weights large enough that a wrong mask shows."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from hf_masking import parse_mask

VOCABULARY, WINDOW = 97, 5

_SHARED = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
_GROUPED = _SHARED | {"num_key_value_heads": 2, "head_dim": 6}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**_SHARED, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "qwen3": Qwen3Config(**_GROUPED),
    "gemma3": Gemma3TextConfig(
        **_GROUPED,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=6,
    ),
}

# The window that each layer of a family has itself.
OWN_WINDOWS = {"mistral": [WINDOW, WINDOW], "gemma3": [WINDOW, None]}


def own_windows(family: str) -> list[int | None]:
    return OWN_WINDOWS.get(family, [None, None])


def build(family: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A model in evaluation mode, always with the same weights for a seed."""
    torch.manual_seed(seed)
    config = CONFIGS[family].__class__.from_dict(CONFIGS[family].to_dict() | changes)
    return AutoModelForCausalLM.from_config(config).eval()


MASKS = [
    "causal",
    "window:4",
    "block_causal:4",
    "block_local:4,1",
    "offsets:0,1,3,7",
    "strided:3",
    "dilated:3,2",
    "log_sparse",
    "sinks:2|offsets:0",
    "summary:4,2|window:1",
    "window:3|sinks:2",
    "causal-(window:6-window:2)",
]


def tokens(rows: int, length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def dense_mask(mask: str, windows: int | None, ids: list[list[int]]) -> torch.Tensor:
    """``[B, 1, N, N]`` booleans for the documents of each row (negative: padding), pair by pair.

    A window of the model's own limits how far back a query sees, and nothing ahead of it.
    """
    from ..masks.oracle import allowed

    mask = parse_mask(mask)
    rows = []
    for row in ids:
        n = len(row)
        position = [row[:column].count(row[column]) for column in range(n)]
        rows.append(
            [
                [
                    row[i] == row[j] >= 0
                    and allowed(mask, position[i], position[j])
                    and (windows is None or position[i] - position[j] < windows)
                    for j in range(n)
                ]
                for i in range(n)
            ]
        )
    return torch.tensor(rows)[:, None]
