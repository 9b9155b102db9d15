"""A decode step under a selection: score the summaries that a cache keeps, and read only the keys of picked blocks."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..masks import Causal, Mask, MaskExpression
from ..masks.marks import Marks
from ..masks.normal_form import NormalForm
from ..plan import Documents
from .inputs import Inputs
from .needed_keys import needed_keys


def can_do(inputs: Inputs) -> bool:
    """Return whether there is one query per row, all under one selection and nothing else, and a cache of summaries."""
    mask, positions = inputs.mask, inputs.documents.query_positions
    if inputs.query.shape[2] != 1 or inputs.summaries is None or mask.selection is None or mask.weightings:
        return False
    return bool((positions >= 0).all()) and len(_bound(mask, inputs.documents)) == 1


def attend(inputs: Inputs) -> Tensor:
    """Attend to the picked blocks and to the keys that need no choice."""
    query, key, documents = inputs.query, inputs.key, inputs.documents
    (mask,) = _bound(inputs.mask, documents)
    form, summaries = mask.normal_form(), inputs.summaries
    assert form.selection is not None
    assert summaries is not None
    selection = form.selection
    batch, key_heads, count = key.shape[:3]
    _, fixed, allowed = needed_keys(_without_choice(form), documents, 0, 1)
    fixed = torch.arange(count, device=key.device) if fixed is None else fixed

    positions = documents.query_positions.long()[:, None]
    queries = query.unflatten(1, (key_heads, -1))
    blocks = selection.choose(queries, summaries, positions)
    # A block longer than all cached keys is not complete, so it is not picked.
    within = torch.arange(min(selection.block, count), device=key.device)
    picked = (blocks[..., None] * selection.block + within).flatten(-3)
    seen = picked >= 0
    if form.full is not None or form.domain != Causal():
        seen = seen & form.rest.allows(positions, picked)
    columns = torch.cat([fixed.expand(batch, key_heads, -1), _columns_of(documents, picked.clamp(min=0))], dim=-1)
    fixed_seen = fixed.new_ones(1, dtype=torch.bool) if allowed is None else allowed[:, :, 0]
    seen = torch.cat([fixed_seen.expand(batch, key_heads, len(fixed)), seen], dim=-1)
    output: Tensor = scaled_dot_product_attention(
        query,
        rows_of(key, columns),
        rows_of(inputs.value, columns),
        attn_mask=seen.repeat_interleave(queries.shape[2], dim=1)[:, :, None],
        dropout_p=inputs.options.dropout,
        scale=inputs.options.scale,
        enable_gqa=queries.shape[2] > 1,
    )
    return output


def _bound(mask: MaskExpression, documents: Documents) -> set[MaskExpression]:
    """Return the masks of the rows: more than one where a mask needs the prompts, and their lengths differ."""
    marks = documents.key_marks
    prompts = [0] if marks is None else marks[:, 1, 0].unique().tolist()
    # Marked spans arrived as a whole: a query after them sees no more of them.
    return {mask.bind(Marks(prompt=prompt)) for prompt in prompts}


@functools.lru_cache(maxsize=64)
def _without_choice(form: NormalForm) -> Mask:
    """Return the pairs that need no choice: the static part, and each query's own block."""
    assert form.selection is not None
    assert form.domain is not None
    own = form.selection.own_block & form.domain
    return own if form.full is None else form.full | own


def rows_of(x: Tensor, columns: Tensor) -> Tensor:
    """Return ``x[b, g, columns[b, g]]`` for ``[B, G, M, D]`` and ``[B, G, n]``."""
    size = x.shape[3]
    strides = [stride // size for stride in x.stride()[:3]]
    if x.requires_grad or x.stride() != (*(stride * size for stride in strides), 1):
        return x.gather(2, columns[..., None].expand(-1, -1, -1, size))
    # `gather` moves single numbers. All rows of the tensor that a cache's view belongs to lie in one line, from which
    # `index_select` takes whole rows.
    batch, heads, _ = columns.shape
    starts = (
        torch.arange(batch, device=x.device)[:, None] * strides[0] + torch.arange(heads, device=x.device) * strides[1]
    )
    rows = columns * strides[2] + starts[..., None]
    last = sum((length - 1) * stride for length, stride in zip(x.shape[:3], strides, strict=True))
    line = x.as_strided((last + 1, size), (size, 1))
    return line.index_select(0, rows.flatten()).view(*columns.shape, size)


def _columns_of(documents: Documents, positions: Tensor) -> Tensor:
    """Return the columns in which the keys of these positions ``[B, G, n]`` stand."""
    key_positions = documents.key_positions.long()
    count = key_positions.shape[1]
    if documents.alike and int(documents.key_positions[0, -1]) == count - 1:
        return positions
    # Padding goes to one more place past the end, which nothing asks for.
    places = torch.where(key_positions < 0, count, key_positions)
    columns = torch.zeros(len(key_positions), count + 1, dtype=torch.long, device=positions.device)
    columns.scatter_(1, places, torch.arange(count, device=positions.device).expand_as(places))
    return columns.expand(len(positions), -1).gather(1, positions.flatten(1)).view_as(positions)
