"""Draw the pictures of the catalogue (README.md, docs/masks.md): python scripts/draw_masks.py [folder]"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import effective_weights, parse_mask, patch_model
from hf_masking.adaptive import ADAPTIVE
from hf_masking.files import written_aside
from hf_masking.masks import PATTERNS
from hf_masking.masks.picture import draw_png, draw_weights_png

FOLDER = Path(__file__).parents[1] / "docs" / "masks"
LENGTH = 24
# A size at which each mask shows what it is, by the name of its picture.
STATIC = {
    "causal": "causal",
    "window": "window:6",
    "block_causal": "block_causal:6",
    "block_local": "block_local:6,1",
    "offsets": "offsets:0,1,2,4,8,16",
    "strided": "strided:6",
    "dilated": "dilated:4,3",
    "log_sparse": "log_sparse",
    "sinks": "sinks:3",
    "summary": "summary:6,2",
    "prefix": "prefix:8",
    "spans": "spans:2,8,14,20",
    "prompt": "prompt:8",
    "after_prompt": "after_prompt:16",
}
COMPOSED = {
    "window_sinks": "window:6|sinks:3",
    "strided_window": "strided:6|window:6",
    "heads_window_strided": "heads[window:6; strided:6]",
    "prefix_causal": "prefix:8|causal",
    "intersection": "strided:3&window:12",
    "difference": "causal-(window:12-window:4)",
}
CONTENT = {
    "adaptive_span": "adaptive_span:max=10,ramp=6",
    "top_blocks": "top_blocks:block=3,k=2",
    "relevance": "relevance:rank=4",
}


def learn(module: nn.Module) -> None:
    """Give a mask's parameters random values: at the start it leaves nothing out (and `top_blocks` has none)."""
    values = dict(module.named_parameters())
    if "share" in values:
        values["share"].fill_(0.5)  # of the longest span
    if "bias" in values:
        values["bias"].zero_()
        values["key"].normal_(std=4 * values["query"].std().item())


@torch.no_grad()
def draw_content(spec: str, path: Path) -> None:
    """Draw the realized mask of head 0 of a small random model on random tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, vocab_size=50, initializer_range=0.3, bos_token_id=None, eos_token_id=None)
    model = patch_model(AutoModelForCausalLM.from_config(config).eval(), spec)
    for module in model.model.layers[0].self_attn.hf_masking.children():
        learn(module)
    (weights,) = effective_weights(model, input_ids=torch.randint(50, (1, LENGTH)), use_cache=False)
    draw_weights_png(weights[0, 0], spec, path)


def draw_static(spec: str, path: Path) -> None:
    draw_png(parse_mask(spec), LENGTH, path, legend=False)


def main(folder: Path) -> None:
    assert (list(STATIC), list(CONTENT)) == (list(PATTERNS), list(ADAPTIVE)), "each mask has its picture"
    pictures: list[tuple[dict[str, str], Callable[[str, Path], None]]] = [
        (STATIC | COMPOSED, draw_static),
        (CONTENT, draw_content),
    ]
    for specs, draw in pictures:
        for name, spec in specs.items():
            with written_aside(folder / f"{name}.png") as aside:
                draw(spec, aside)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
