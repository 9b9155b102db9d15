"""Forward and backward of a part that is made of blocks: two and five batched matrix products per operation.

The letters are those of FlashAttention (Dao et al., https://arxiv.org/abs/2205.14135), tile by tile:

    forward     S = Q Kᵀ   P = softmax(S)   O = P V   L = log-sum-exp of S
    backward    P = exp(S - L)   dV = Pᵀ dO   dP = dO Vᵀ   dS = P * (dP - D)   dQ = dS K   dK = dSᵀ Q

Scores and log-sum-exps are in base 2. With dropout, P and dP are multiplied by its factors where they meet V and dO.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan.blocks import Blocks
from ..plan.layout import Layout
from . import fused
from .block_bias import DenseBias, RunBias
from .block_weights import BlockWeights
from .kernel_state import LOG2E, BackwardState, ForwardState, KeyGradient, merge, normalized, write
from .tile_batch import TileBatch, tile_batches


def forward(part: Blocks, x: ForwardState, *, fresh: bool) -> None:
    """Merge the part into ``x.out`` and ``x.lse``.

    Parameters:
        fresh: they hold no results yet.
    """
    laid_out = _LaidOut.of(part, x)
    layout = laid_out.layout
    out, lse = layout.queries(x.out), layout.queries(x.lse)
    fresh = fresh and layout.query_padding == (0, 0)
    is_fused = not laid_out.leaves and fused.can_do(laid_out.query, laid_out.value) and _is_plain(x)
    written = 0
    for run in part.runs:
        bias = RunBias(part, run, laid_out.query)
        put = write if fresh and run.first_row >= written else merge
        written = run.stop_row
        for tiles in tile_batches(part, run, x):
            rows, row_lse = tiles.rows(out), tiles.rows(lse)
            if is_fused:
                values, part_lse = laid_out.fused_values(tiles, bias.dense(tiles))
            else:
                values, part_lse = laid_out.values(tiles, bias)
            put(rows, row_lse, values.view(rows.shape), part_lse.view(row_lse.shape))
    layout.write_queries(x.out, out)
    layout.write_queries(x.lse, lse)


def backward(part: Blocks, x: BackwardState) -> None:
    """Add the part's share to the gradients of ``x``."""
    laid_out = _LaidOut.of(part, x)
    layout, scale = laid_out.layout, x.scoring.scale
    grad_out, lse, delta = layout.queries(x.grad_out), layout.queries(x.lse), layout.queries(x.delta)
    grad_query = layout.queries(x.grad_query)
    grad_key, grad_value = KeyGradient(layout, x.grad_key), KeyGradient(layout, x.grad_value)
    for run in part.runs:
        bias = RunBias(part, run, laid_out.query)
        for tiles in tile_batches(part, run, x):
            S, slope = laid_out.scores(tiles, bias)
            P = S.sub_(tiles.row_matrices(lse)).exp2_()
            dO = tiles.row_matrices(grad_out)
            dP = x.scratch.take("dP", *P.shape)
            torch.bmm(dO, tiles.slab_matrices(laid_out.value).mT, out=dP)
            keep = x.draws.keep(P)
            tiles.add_to_slabs(grad_value.sums, laid_out.in_slabs(P if keep is None else P * keep, dO))
            if keep is not None:
                dP.mul_(keep)
            dS = dP.sub_(tiles.row_matrices(delta)).mul_(P)
            for leaf in laid_out.leaves:
                leaf.add_gradients(tiles, dS)
            if slope is not None:
                dS.mul_(slope)
            rows = tiles.rows(grad_query)
            rows.add_(laid_out.in_rows(dS, tiles.slab_matrices(laid_out.key)).view(rows.shape), alpha=scale)
            tiles.add_to_slabs(grad_key.sums, laid_out.in_slabs(dS, tiles.row_matrices(laid_out.query)), scale)
    layout.write_queries(x.grad_query, grad_query)
    for written in (grad_key, grad_value):
        written.write()
    for leaf in laid_out.leaves:
        leaf.write_gradients()


def _is_plain(x: ForwardState) -> bool:
    """Return whether there is neither dropout nor a soft cap, which the fused kernel lacks."""
    return not x.scoring.dropout and x.scoring.softcap is None


@dataclass
class _LaidOut:
    """A document in the layout of a part: query ``[H, C, N/C, D]``, key and value ``[G, C, M/C, D]``."""

    x: ForwardState
    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    leaves: list[BlockWeights]

    @classmethod
    def of(cls, part: Blocks, x: ForwardState) -> _LaidOut:
        layout = part.layout.to(x.query.device)
        leaves = [BlockWeights(part, leaf) for leaf in x.leaves] if part.weighted else []
        return cls(x, layout, layout.queries(x.query), layout.keys(x.key), layout.keys(x.value), leaves)

    def scores(self, tiles: TileBatch, bias: RunBias) -> tuple[Tensor, Tensor | None]:
        """Return S with the bias and the log weights ``[T, rows, width]``, and the slope of the soft cap."""
        Q, K = tiles.row_matrices(self.query), tiles.slab_matrices(self.key)
        products = self.x.scratch.take("S", *Q.shape[:2], K.shape[1])
        torch.baddbmm(products, Q, K.mT, beta=0, alpha=self.x.scoring.factor, out=products)
        S, slope = self.x.scoring.bend(products)
        by_tile = S.view(tiles.n_heads, tiles.n_classes, tiles.run.blocks, *S.shape[1:])
        bias.add_to(by_tile, tiles)
        for leaf in self.leaves:
            by_tile.add_(leaf.log_weights(tiles), alpha=LOG2E)
        return S, slope

    def values(self, tiles: TileBatch, bias: RunBias) -> tuple[Tensor, Tensor]:
        """Return O ``[T, rows, Dv]`` and L ``[T, rows, 1]`` of the tiles."""
        S, _ = self.scores(tiles, bias)
        peak = S.amax(-1, keepdim=True).clamp_(min=torch.finfo(S.dtype).min)
        P = S.sub_(peak).exp2_()
        total = P.sum(-1, keepdim=True)
        if (keep := self.x.draws.keep(P)) is not None:
            P.mul_(keep)
        return normalized(self.in_rows(P, tiles.slab_matrices(self.value)), peak, total)

    def fused_values(self, tiles: TileBatch, bias: DenseBias | None) -> tuple[Tensor, Tensor]:
        """Return the same, computed by the fused kernel."""
        Q, K, V = tiles.row_matrices(self.query), tiles.slab_matrices(self.key), tiles.slab_matrices(self.value)
        values, lse = fused.attend(Q, K, V, None if bias is None else bias.values, self.x.scoring.scale)
        # The kernel's result for a row without keys is not to be relied on.
        return values, lse if bias is None else lse.masked_fill_(bias.blind, -torch.inf)

    def in_rows(self, weights: Tensor, slabs: Tensor) -> Tensor:
        """Return weights times slabs, ``[T, rows, D]``."""
        out = self.x.scratch.take("rows", *weights.shape[:2], slabs.shape[-1])
        return torch.bmm(weights, slabs, out=out)

    def in_slabs(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Return transposed weights times rows, ``[T, width, D]``."""
        out = self.x.scratch.take("slabs", weights.shape[0], weights.shape[2], rows.shape[2])
        return torch.bmm(weights.mT, rows, out=out)
