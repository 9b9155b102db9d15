"""Draws the pictures of the catalogue in README.md: python scripts/draw_masks.py"""

import re
from pathlib import Path

from hf_masking.files import written_aside
from hf_masking.masks import PATTERNS, Mask
from hf_masking.masks.picture import draw_png

FOLDER = Path(__file__).parents[1] / "docs" / "masks"
LENGTH = 24
# A size at which each pattern shows what it is.
SPECS = (
    "causal",
    "window:6",
    "block_causal:6",
    "block_local:6,1",
    "offsets:0,1,2,4,8,16",
    "strided:6",
    "dilated:4,3",
    "log_sparse",
    "sinks:3",
    "summary:6,2",
    "prefix:8",
    "spans:2,8,14,20",
)


def main() -> None:
    assert [re.match("[a-z_]+", spec).group() for spec in SPECS] == list(PATTERNS)  # type: ignore[union-attr]
    for spec in (*SPECS, "window:6|sinks:3", "strided:6|window:6", "heads[window:6; strided:6]"):
        name = re.sub(r"[^a-z]+", "_", re.sub("[0-9,:]+", "", spec)).strip("_")
        with written_aside(FOLDER / f"{name}.png") as aside:
            draw_png(Mask.parse(spec), LENGTH, aside)


if __name__ == "__main__":
    main()
