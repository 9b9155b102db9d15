"""Patterns: the picture in each docstring, and what their arguments may be."""

import re

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.masks import PATTERNS, Offsets, SlidingWindow


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_the_picture_in_the_docstring_is_the_mask(pattern):
    spec, rows = re.search(r"``([a-z_:0-9,]+)``::\n\n((?: +[01 ]+\n)+)", pattern.__doc__ + "\n").groups()
    picture = torch.tensor([[int(pair) for pair in row.split()] for row in rows.strip().splitlines()])
    assert torch.equal(parse_mask(spec).dense(*picture.shape).int(), picture)
    assert type(parse_mask(spec)) is pattern


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SlidingWindow(0), "window: `window` must be an integer from 1 to 2147483647, got 0"),
        (lambda: SlidingWindow(True), "got True"),
        (lambda: SlidingWindow(2.0), "got 2.0"),
        (lambda: Offsets(()), "expected at least one distance"),
        (lambda: Offsets((-1,)), "offsets: each distance must be an integer from 0"),
        (lambda: parse_mask("summary:4,5"), "summary: `width` must be an integer from 1 to 4, got 5"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
