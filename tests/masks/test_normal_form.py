"""The normal form of a composition against its definition, pair by pair."""

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.adaptive import ADAPTIVE

from ..adaptive import oracle

MASKS = ["{}", "{}|sinks:2", "{}&window:9|sinks:1", "({}-sinks:3)|window:2", "{}&strided:2", "({}|sinks:1)-window:1"]


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("leaf", [*ADAPTIVE, "adaptive_span&relevance"])
def test_the_normal_form_is_the_definition(form, leaf):
    """Weights of random content, pair by pair: by the operators, and by the normal form."""
    specs = {
        "adaptive_span": "adaptive_span:max=7,ramp=3",
        "top_blocks": "top_blocks:block=3,k=2",
        "relevance": "relevance:rank=2",
    }
    both = "(" + "&".join(specs[name] for name in leaf.split("&")) + ")"
    mask = parse_mask(form.format(both))
    draw = torch.Generator().manual_seed(0)
    content = {name: torch.rand(17, 17, generator=draw).tolist() for name in specs}

    def of(leaf, i, j):
        # A span is 0 outside of its envelope, whatever is learned.
        return content[leaf.name][i][j] * float(leaf.envelope.allows(torch.tensor(i), torch.tensor(j)))

    graded = mask.normal_form()
    for i in range(17):
        for j in range(17):
            full = 0.0 if graded.full is None else oracle.weight(graded.full, i, j, of)
            product = oracle.weight(graded.domain, i, j, of)
            for each in graded.adaptive:
                product *= of(each, i, j) if j <= i else 0.0
            assert max(full, product) == pytest.approx(oracle.weight(mask, i, j, of)), (i, j)
