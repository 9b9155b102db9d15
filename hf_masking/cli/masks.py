"""Run `hf-masking masks`: list the masks that a spec may name."""

from __future__ import annotations

import inspect
import json
import textwrap
from dataclasses import MISSING, fields
from typing import Any

from ..masks.counting import density
from ..masks.pattern import Pattern
from ..spec import MASKS, parse_mask
from .options.masks import MasksOptions
from .terminal import console

LENGTH = 4096  # tokens over which densities are counted

# A mask of each name, at a realistic size.
EXAMPLES = {
    "causal": "causal",
    "window": "window:256",
    "block_causal": "block_causal:64",
    "block_local": "block_local:256,1",
    "offsets": "offsets:0,1,2,4,8,16,32,64",
    "strided": "strided:64",
    "dilated": "dilated:128,4",
    "log_sparse": "log_sparse",
    "sinks": "sinks:4",
    "summary": "summary:128,8",
    "prefix": "prefix:512",
    "spans": "spans:256,512",
    "prompt": "prompt:512",
    "after_prompt": "after_prompt:3584",
    "adaptive_span": "adaptive_span:max=1024",
    "top_blocks": "top_blocks:block=64,k=8",
    "relevance": "relevance",
}
COMBINING = "Combine masks with | (union), & (intersection), - (difference), ( ), and heads[a; b] (by head)."


def run(options: MasksOptions) -> None:
    """Print the catalogue of masks."""
    rows = [_row(name, pattern) for name, pattern in MASKS.items()]
    if options.json:
        console.print(json.dumps(rows, indent=2), soft_wrap=True)
        return
    for row in rows:
        share = "depends on the content" if row["density"] is None else f"{row['density']:.2%} of causal"
        console.print(f"{row['name']}{row['arguments']}", soft_wrap=True)
        console.print(textwrap.fill(row["allows"], console.width, initial_indent="  ", subsequent_indent="  "))
        console.print(f"  e.g. {row['example']}: {share}", soft_wrap=True)
    console.print(f"\nDensities are counted over {LENGTH:,} tokens.\n{COMBINING}")


def _row(name: str, pattern: type[Pattern]) -> dict[str, Any]:
    example = EXAMPLES.get(name, name)
    mask = parse_mask(example)
    return {
        "name": name,
        "arguments": _arguments(pattern),
        "allows": inspect.cleandoc(pattern.__doc__ or "").splitlines()[0].replace("``", "").replace("**", ""),
        "example": example,
        "density": None if mask.is_adaptive else density(mask, LENGTH),
    }


def _arguments(pattern: type[Pattern]) -> str:
    """Return the arguments as a spec takes them, such as `:block_size,lookback=0`."""
    shown = [
        field.name if field.default is MISSING or field.default is None else f"{field.name}={field.default}"
        for field in fields(pattern)
        if field.init
    ]
    return f":{','.join(shown)}" if shown else ""
