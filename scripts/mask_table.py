"""Rewrite the table of docs/masks.md from the masks themselves: python scripts/mask_table.py"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_masking import effective_mask, parse_mask, patch_model
from hf_masking.files import written_aside
from hf_masking.masks import Causal, MaskExpression, Tile
from hf_masking.masks.counting import count_pairs, keys_kept
from hf_masking.plan import Lengths, plan_of

PAGE = Path(__file__).parents[1] / "docs" / "masks.md"
BEGIN, END = "<!-- masks -->\n", "<!-- /masks -->\n"
LENGTH, CACHED = 4096, 32_768
FLEX_TILE = 128


@dataclass(frozen=True)
class Example:
    """Hold a mask at a realistic size, what it is for, and its section in the page: its own name unless given."""

    spec: str
    use: str
    section: str = ""

    @property
    def name(self) -> str:
        return self.section or self.spec.partition(":")[0]


EXAMPLES = (
    Example("causal", "full attention, the baseline"),
    Example("window:512", "local context; in a pretrained model with `sinks`"),
    Example("block_causal:64", "blocks read as a whole; no generation"),
    Example("block_local:256,1", "local context in aligned blocks"),
    Example("offsets:0,1,2,4,8,16,32,64", "distances chosen one by one"),
    Example("strided:64", "far context at a fixed step, in a union"),
    Example("dilated:128,4", "a wider window for the same number of keys"),
    Example("log_sparse", "far context for about log N keys, in a union"),
    Example("sinks:4", "what pretrained models lean on, in a union"),
    Example("summary:128,8", "far context through fixed columns, in a union"),
    Example("prefix:512", "a bidirectional prompt, in a union"),
    Example("spans:256,512,1024,1280", "bidirectional images or passages, in a union"),
    Example("prompt:512", "the whole prompt for what is generated, in a union"),
    Example("after_prompt:3584", "everything for what is generated, in a union"),
    Example("adaptive_span:max=1024", "heads learn how far they look"),
    Example("top_blocks:block=64,k=8", "each query selects blocks, untrained"),
    Example("relevance", "pairs are weighted by a learned product"),
    Example("window:512|sinks:4", "the first mask to try on a pretrained model", "union"),
    Example("strided:64|window:64", "Sparse Transformer, strided", "union"),
    Example("block_local:128|summary:128,8", "Sparse Transformer, fixed", "union"),
    Example("prefix:512|causal", "prefix-LM", "union"),
    Example("strided:4&window:512", "one mask inside another", "intersection"),
    Example("causal-(window:512-window:64)", "what a distance contributes", "difference"),
    Example("heads[window:512|sinks:4; causal]", "half of the heads stay full", "heads"),
)


def table() -> str:
    """Return the table in Markdown, one row per example."""
    lines = [
        f"| mask | example | pairs at {LENGTH:,}, share of causal | computed / allowed | flex tiles, share of causal "
        f"| keys kept of {CACHED:,} | use |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for example in EXAMPLES:
        mask = parse_mask(example.spec)
        cells = [
            f"[`{example.name}`](#{example.name})",
            "`" + example.spec.replace("|", "\\|") + "`",
            f"{pairs(mask) / (LENGTH * (LENGTH + 1) / 2):.1%}",
            "" if mask.is_adaptive else f"{_computed(mask):.2f}",
            "" if mask.is_adaptive else f"{_tiles(mask) / _tiles(Causal()):.1%}",
            f"{keys_kept(mask, CACHED):,}",
            example.use,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@functools.cache
def pairs(mask: MaskExpression) -> float:
    """Return the number of allowed pairs of 4,096 tokens per head; of adaptive masks, in a small untrained model."""
    if not mask.is_adaptive:
        return sum(count_pairs(member, LENGTH) for member in mask.heads) / len(mask.heads)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = LlamaConfig(
        **sizes, vocab_size=64, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    model = patch_model(AutoModelForCausalLM.from_config(config).eval(), mask, check=False)
    (seen,) = effective_mask(model, input_ids=torch.randint(64, (1, LENGTH)), use_cache=False)
    return int(seen.sum())


def _computed(mask: MaskExpression) -> float:
    """Return the computed pairs over the allowed pairs of all heads."""
    lengths = Lengths(0, LENGTH, 0, LENGTH)
    computed = sum(plan_of(member, lengths).touched for member in mask.heads)
    return computed / (pairs(mask) * len(mask.heads))


def _tiles(mask: MaskExpression) -> float:
    """Return the number of tiles with an allowed pair, averaged over heads."""
    low = torch.arange(0, LENGTH, FLEX_TILE)
    q, k = low[:, None], low[None]
    tiles = [member.tiles(q, q + FLEX_TILE, k, k + FLEX_TILE) for member in mask.heads]
    return sum(int((some != Tile.NONE).sum()) for some in tiles) / len(tiles)


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} has no place for the table: {BEGIN.strip()} and {END.strip()}")
    with written_aside(PAGE) as aside:
        aside.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
