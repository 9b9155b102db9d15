"""Forward and backward of chosen blocks: each block of keys against the queries that chose it (Lu et al., MoBA, alg. 1,
https://arxiv.org/abs/2502.13189), so that keys are read in one piece, and what each query got from its blocks is merged
by the log-sum-exps."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..plan.cost_model import WORKSPACE
from ..plan.selected import Selected
from .operands import LOG2E, Backward, Forward, Scoring, Weighing, normalized


def forward(part: Selected, x: Forward, scoring: Scoring, generator: torch.Generator, *, fresh: bool) -> None:
    """Adds the part to ``x.out`` and ``x.lse``."""
    tiles = _Tiles(part, x)
    out, lse = tiles.slots("out", x.out.shape[-1], 0.0), tiles.slots("lse", 1, -torch.inf)
    for some, slots in tiles.batches():
        scores, _ = tiles.scores(some, tiles.rows(tiles.query, some, "query"), scoring)
        peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        weights = scores.sub_(peak).exp2_()
        total = weights.sum(-1, keepdim=True)
        if (keep := scoring.keep(weights, generator)) is not None:
            weights.mul_(keep)
        values, of_values = (y[slots].view(*weights.shape[:2], -1) for y in (out, lse))
        torch.bmm(weights, tiles.blocks_of(tiles.value, some, "values"), out=values)
        of_values.copy_(normalized(values, peak, total)[1])
    rows_out, rows_lse = x.out.transpose(0, 1), x.lse.transpose(0, 1)
    of_rows = lse[part.places]
    merged = torch.cat([of_rows, rows_lse[:, None]], dim=1).mul_(1 / LOG2E).logsumexp(1).mul_(LOG2E)
    shift = merged.clamp(min=torch.finfo(merged.dtype).min)
    shares = of_rows.sub_(shift[:, None]).exp2_()
    rows_out.mul_((rows_lse - shift).exp2_()).add_(tiles.summed(out, shares))
    rows_lse.copy_(merged)


def backward(part: Selected, x: Backward, scoring: Scoring, generator: torch.Generator) -> None:
    """Adds the part's share to the gradients of ``x``."""
    tiles = _Tiles(part, x)
    grad_query = tiles.slots("grad_query", x.query.shape[-1], 0.0)
    grad_key, grad_value = (tiles.in_blocks(y[tiles.key_head]) for y in (x.grad_key, x.grad_value))
    of_features = [tiles.slots(f"weighing {i}", w.query.shape[-1], 0.0) for i, w in enumerate(tiles.weighings)]
    grad_out, lse, delta = (tiles.by_query(y) for y in (x.grad_out, x.lse, x.delta))
    for some, slots in tiles.batches():
        blocks = part.blocks[some]
        rows = tiles.rows(tiles.query, some, "query")
        weights, slope = tiles.scores(some, rows, scoring)
        # What stands in an empty slot counts for nothing.
        weights.sub_(tiles.rows(lse, some, "lse").masked_fill_(tiles.empty(some), torch.inf)).exp2_()
        rows_grad = tiles.rows(grad_out, some, "grad_out")
        values = tiles.blocks_of(tiles.transposed_value, some, "transposed values")
        grad_weights = tiles.product("grad_weights", rows_grad, values)
        keep = scoring.keep(weights, generator)
        dropped = weights if keep is None else weights * keep
        grad_value.index_add_(0, blocks, tiles.product("in_blocks", dropped.mT, rows_grad))
        if keep is not None:
            grad_weights.mul_(keep)
        grad_scores = grad_weights.sub_(tiles.rows(delta, some, "delta")).mul_(weights)
        for weighing, grad in zip(tiles.weighings, of_features, strict=True):
            tiles.add_gradients(weighing, some, grad_scores, grad[slots])
        if slope is not None:
            grad_scores.mul_(slope)
        product = grad_query[slots].view(*grad_scores.shape[:2], -1)
        torch.bmm(grad_scores, tiles.blocks_of(tiles.key, some, "keys"), out=product)
        in_blocks = tiles.product("in_blocks", grad_scores.mT, rows)
        grad_key.index_add_(0, blocks, in_blocks, alpha=scoring.scale)
    x.grad_query.transpose(0, 1).add_(tiles.summed(grad_query), alpha=scoring.scale)
    for weighing, grad in zip(tiles.weighings, of_features, strict=True):
        if weighing.grad_query is not None:
            weighing.grad_query.transpose(0, 1).add_(tiles.summed(grad))


class _Tiles:
    """The tiles of a part: the rows of a tile are its slots, for each the ``heads`` query heads of the key head.

    What is as large as the slots, or is made for every batch of tiles, is made in scratch memory.
    """

    def __init__(self, part: Selected, x: Forward) -> None:
        self.part, self.x = part, x
        self.key_head, self.heads = x.first_head // x.group, x.query.shape[0]
        self.weighings = x.weighings if part.weighted else []
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
        """Some tiles, and their slots."""
        tiles, size = self.part.rows.shape
        step = max(1, WORKSPACE // (size * self.heads * self.part.block))
        for first in range(0, tiles, step):
            stop = min(first + step, tiles)
            yield slice(first, stop), slice(first * size, stop * size)

    def slots(self, name: str, size: int, missing: float) -> Tensor:
        """A tensor ``[T * R + 1, h, size]``; the last slot stands for the blocks that a query does not have."""
        slots = self.x.scratch.take(f"slots of {name}", self.part.rows.numel() + 1, self.heads, size)
        slots[-1] = missing
        return slots

    def summed(self, slots: Tensor, shares: Tensor | None = None) -> Tensor:
        """What is in the slots of each query, times its share ``[m, k, h, 1]``, as a sum ``[m, h, size]``."""
        head = torch.arange(self.heads, device=slots.device)[:, None]
        places = (self.part.places[:, None] * self.heads + head).flatten(0, 1)
        weights = None if shares is None else shares[..., 0].mT.reshape(places.shape)
        # Reads and adds at once: three times as fast as one after the other.
        sums = embedding_bag(places, slots.flatten(0, 1), mode="sum", per_sample_weights=weights)
        return sums.unflatten(0, (-1, self.heads))

    def take(self, x: Tensor, index: Tensor, name: str) -> Tensor:
        """``x[index]`` in scratch memory."""
        return torch.index_select(x, 0, index, out=self.x.scratch.take(name, len(index), *x.shape[1:]))

    def product(self, name: str, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        out = self.x.scratch.take(name, len(left), left.shape[1], right.shape[2])
        return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)

    def by_query(self, x: Tensor) -> Tensor:
        """``[h, m, D]`` as ``[m, h, D]``; a view for a single head."""
        return x.transpose(0, 1).contiguous()

    def in_blocks(self, x: Tensor) -> Tensor:
        """``[n, D]`` as ``[blocks, block, D]``, a view of those that are complete."""
        blocks = x.shape[0] // self.part.block
        return x[: blocks * self.part.block].unflatten(0, (blocks, self.part.block))

    def rows(self, x: Tensor, tiles: slice, name: str) -> Tensor:
        """Those of ``[m, h, D]`` for some tiles: ``[t, R * h, D]``."""
        rows = self.part.rows[tiles]
        return self.take(x, rows.flatten(), f"rows of {name}").view(len(rows), -1, x.shape[-1])

    def blocks_of(self, x: Tensor, tiles: slice, name: str) -> Tensor:
        """Those of ``[blocks, ...]`` for some tiles: ``[t, ...]``."""
        return self.take(x, self.part.blocks[tiles], f"tiles of {name}")

    def empty(self, tiles: slice) -> Tensor:
        """Which rows are empty slots ``[t, R * h, 1]``."""
        return ~self.part.taken[tiles].repeat_interleave(self.heads, dim=1)[..., None]

    def scores(self, tiles: slice, rows: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
        """Masked scores in base 2 ``[t, R * h, block]`` of these rows, and the slope of the soft cap."""
        keys = self.blocks_of(self.transposed_key, tiles, "transposed keys")
        products = self.product("scores", rows, keys, scoring.factor)
        scores, slope = scoring.bend(products)
        for weighing in self.weighings:
            scores.add_(weighing.log_weight(*self.read(weighing, tiles)), alpha=LOG2E)
        excluded = self.excluded(tiles)
        return (scores if excluded is None else scores.masked_fill_(excluded, -torch.inf)), slope

    def excluded(self, tiles: slice) -> Tensor | None:
        """The pairs of tokens ``[t, R * h, block]`` that may not be seen; None if all may."""
        if self.part.guard is None:
            return None
        return ~self.part.guard.allows(*self.part.positions(tiles)).repeat_interleave(self.heads, dim=1)

    def read(self, weighing: Weighing, tiles: slice) -> tuple[Tensor, Tensor | None, Tensor]:
        """What gives weights to some tiles: features of queries and keys, and the distances."""
        q, k = self.part.positions(tiles)
        key = None
        if weighing.key is not None:
            key = self.in_blocks(weighing.key[self.key_head])[self.part.blocks[tiles]]
        query = self.rows(self.by_query(weighing.query), tiles, "features")
        return query, key, (q - k).repeat_interleave(self.heads, dim=1)

    def add_gradients(self, weighing: Weighing, tiles: slice, grad_scores: Tensor, grad_slots: Tensor) -> None:
        grads = weighing.gradients(*self.read(weighing, tiles), grad_scores)
        grad_slots.copy_(grads[0].view(grad_slots.shape))
        if weighing.grad_key is not None:
            self.in_blocks(weighing.grad_key[self.key_head]).index_add_(0, self.part.blocks[tiles], grads[1])
