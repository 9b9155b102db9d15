"""Forward and backward of selected blocks: each key block against the queries that selected it.

So a block of keys is read once (Lu et al., "MoBA", algorithm 1, https://arxiv.org/abs/2502.13189), and what each query
got from its blocks is merged by the log-sum-exps. The letters are those of `block_kernel`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..plan.cost_model import WORKSPACE
from ..plan.selected import Selected
from .kernel_state import LOG2E, BackwardState, ForwardState, normalized
from .leaves import DocumentLeaf


def forward(part: Selected, x: ForwardState, *, fresh: bool) -> None:
    """Merge the part into ``x.out`` and ``x.lse``."""
    slots = _Slots(part, x)
    out, lse = slots.new("out", x.out.shape[-1], 0.0), slots.new("lse", 1, -torch.inf)
    for tiles, places in slots.batches():
        S, _ = slots.scores(tiles, slots.rows(slots.query, tiles, "query"))
        peak = S.amax(-1, keepdim=True).clamp_(min=torch.finfo(S.dtype).min)
        P = S.sub_(peak).exp2_()
        total = P.sum(-1, keepdim=True)
        if (keep := x.draws.keep(P)) is not None:
            P.mul_(keep)
        values, of_values = (y[places].view(*P.shape[:2], -1) for y in (out, lse))
        torch.bmm(P, slots.blocks_of(slots.value, tiles, "values"), out=values)
        of_values.copy_(normalized(values, peak, total)[1])
    rows_out, rows_lse = x.out.transpose(0, 1), x.lse.transpose(0, 1)
    of_rows = lse[part.places]
    merged = torch.cat([of_rows, rows_lse[:, None]], dim=1).mul_(1 / LOG2E).logsumexp(1).mul_(LOG2E)
    shift = merged.clamp(min=torch.finfo(merged.dtype).min)
    shares = of_rows.sub_(shift[:, None]).exp2_()
    rows_out.mul_((rows_lse - shift).exp2_()).add_(slots.summed(out, shares))
    rows_lse.copy_(merged)


def backward(part: Selected, x: BackwardState) -> None:
    """Add the part's share to the gradients of ``x``."""
    slots = _Slots(part, x)
    grad_query = slots.new("grad_query", x.query.shape[-1], 0.0)
    grad_key, grad_value = (slots.in_blocks(y[slots.key_head]) for y in (x.grad_key, x.grad_value))
    of_leaves = [slots.new(f"leaf {i}", leaf.features.query.shape[-1], 0.0) for i, leaf in enumerate(slots.leaves)]
    grad_out, lse, delta = (slots.by_query(y) for y in (x.grad_out, x.lse, x.delta))
    for tiles, places in slots.batches():
        blocks = part.blocks[tiles]
        Q = slots.rows(slots.query, tiles, "query")
        S, slope = slots.scores(tiles, Q)
        # An empty slot takes part in nothing.
        P = S.sub_(slots.rows(lse, tiles, "lse").masked_fill_(slots.empty(tiles), torch.inf)).exp2_()
        dO = slots.rows(grad_out, tiles, "grad_out")
        dP = slots.product("dP", dO, slots.blocks_of(slots.transposed_value, tiles, "transposed values"))
        keep = x.draws.keep(P)
        dropped = P if keep is None else P * keep
        grad_value.index_add_(0, blocks, slots.product("in_blocks", dropped.mT, dO))
        if keep is not None:
            dP.mul_(keep)
        dS = dP.sub_(slots.rows(delta, tiles, "delta")).mul_(P)
        for leaf, grad in zip(slots.leaves, of_leaves, strict=True):
            slots.add_gradients(leaf, tiles, dS, grad[places])
        if slope is not None:
            dS.mul_(slope)
        in_slots = grad_query[places].view(*dS.shape[:2], -1)
        torch.bmm(dS, slots.blocks_of(slots.key, tiles, "keys"), out=in_slots)
        grad_key.index_add_(0, blocks, slots.product("in_blocks", dS.mT, Q), alpha=x.scoring.scale)
    x.grad_query.transpose(0, 1).add_(slots.summed(grad_query), alpha=x.scoring.scale)
    for leaf, grad in zip(slots.leaves, of_leaves, strict=True):
        if leaf.gradients is not None:
            leaf.gradients.query.transpose(0, 1).add_(slots.summed(grad))


class _Slots:
    """The slots of a part, tile by tile: T tiles of R slots, each with the ``heads`` query heads of one key head.

    Whatever is as large as the slots, or is made for every batch of tiles, lies in scratch memory.
    """

    def __init__(self, part: Selected, x: ForwardState) -> None:
        self.part, self.x = part, x
        self.key_head, self.heads = x.first_head // x.group, x.query.shape[0]
        self.leaves = x.leaves if part.weighted else []
        self.query = self.by_query(x.query)
        self.key, self.value = (self.in_blocks(y[self.key_head]) for y in (x.key, x.value))

    # Products with a transposed block take half as long again.
    @functools.cached_property
    def transposed_key(self) -> Tensor:
        return self.key.mT.contiguous()

    @functools.cached_property
    def transposed_value(self) -> Tensor:
        return self.value.mT.contiguous()

    def batches(self) -> Iterator[tuple[slice, slice]]:
        """Yield some tiles at a time, and the places of their slots."""
        tiles, size = self.part.rows.shape
        step = max(1, WORKSPACE // (size * self.heads * self.part.block))
        for first in range(0, tiles, step):
            stop = min(first + step, tiles)
            yield slice(first, stop), slice(first * size, stop * size)

    def new(self, name: str, size: int, missing: float) -> Tensor:
        """Return a tensor ``[T * R + 1, heads, size]``; its last slot is for the blocks that a query does not have."""
        slots = self.x.scratch.take(f"slots of {name}", self.part.rows.numel() + 1, self.heads, size)
        slots[-1] = missing
        return slots

    def summed(self, slots: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the sum over the slots of each query ``[N, heads, size]``, times its shares ``[N, k, heads, 1]``."""
        head = torch.arange(self.heads, device=slots.device)[:, None]
        places = (self.part.places[:, None] * self.heads + head).flatten(0, 1)
        weights = None if shares is None else shares[..., 0].mT.reshape(places.shape)
        # Reads and adds at once: three times as fast as one after the other.
        sums = embedding_bag(places, slots.flatten(0, 1), mode="sum", per_sample_weights=weights)
        return sums.unflatten(0, (-1, self.heads))

    def take(self, x: Tensor, index: Tensor, name: str) -> Tensor:
        """Return ``x[index]`` in scratch memory."""
        return torch.index_select(x, 0, index, out=self.x.scratch.take(name, len(index), *x.shape[1:]))

    def product(self, name: str, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        """Return a batched matrix product, times ``factor``, in scratch memory."""
        out = self.x.scratch.take(name, len(left), left.shape[1], right.shape[2])
        return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)

    def by_query(self, x: Tensor) -> Tensor:
        """Return ``[heads, N, D]`` as ``[N, heads, D]``; a view for a single head."""
        return x.transpose(0, 1).contiguous()

    def in_blocks(self, x: Tensor) -> Tensor:
        """Return ``[M, D]`` as ``[blocks, block, D]``, a view of the complete blocks."""
        blocks = x.shape[0] // self.part.block
        return x[: blocks * self.part.block].unflatten(0, (blocks, self.part.block))

    def rows(self, x: Tensor, tiles: slice, name: str) -> Tensor:
        """Return the rows of ``[N, heads, D]`` in the slots of some tiles ``[tiles, R * heads, D]``."""
        rows = self.part.rows[tiles]
        return self.take(x, rows.flatten(), f"rows of {name}").view(len(rows), -1, x.shape[-1])

    def blocks_of(self, x: Tensor, tiles: slice, name: str) -> Tensor:
        """Return the blocks of ``[blocks, ...]`` that some tiles are about ``[tiles, ...]``."""
        return self.take(x, self.part.blocks[tiles], f"tiles of {name}")

    def empty(self, tiles: slice) -> Tensor:
        """Return which rows are empty slots ``[tiles, R * heads, 1]``."""
        return ~self.part.taken[tiles].repeat_interleave(self.heads, dim=1)[..., None]

    def scores(self, tiles: slice, Q: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return S in base 2 with the mask and the log weights ``[tiles, R * heads, block]``; the slope of the cap."""
        keys = self.blocks_of(self.transposed_key, tiles, "transposed keys")
        S, slope = self.x.scoring.bend(self.product("S", Q, keys, self.x.scoring.factor))
        for leaf in self.leaves:
            S.add_(leaf.log_weight(*self.leaf_inputs(leaf, tiles)), alpha=LOG2E)
        excluded = self.excluded(tiles)
        return (S if excluded is None else S.masked_fill_(excluded, -torch.inf)), slope

    def excluded(self, tiles: slice) -> Tensor | None:
        """Return the pairs that the guard excludes ``[tiles, R * heads, block]``; None without a guard."""
        if self.part.guard is None:
            return None
        return ~self.part.guard.allows(*self.part.positions(tiles)).repeat_interleave(self.heads, dim=1)

    def leaf_inputs(self, leaf: DocumentLeaf, tiles: slice) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return a leaf's features of queries, features of keys and distances for some tiles."""
        q, k = self.part.positions(tiles)
        key = leaf.features.key
        if key is not None:
            key = self.in_blocks(key[self.key_head])[self.part.blocks[tiles]]
        query = self.rows(self.by_query(leaf.features.query), tiles, "features")
        return query, key, (q - k).repeat_interleave(self.heads, dim=1)

    def add_gradients(self, leaf: DocumentLeaf, tiles: slice, dS: Tensor, grad_slots: Tensor) -> None:
        """Write the gradients of a leaf's features of queries into slots, and add those of keys."""
        query, key = leaf.tile_gradients(*self.leaf_inputs(leaf, tiles), dS)
        grad_slots.copy_(query.view(grad_slots.shape))
        if key is not None and leaf.gradients is not None and leaf.gradients.key is not None:
            self.in_blocks(leaf.gradients.key[self.key_head]).index_add_(0, self.part.blocks[tiles], key)
