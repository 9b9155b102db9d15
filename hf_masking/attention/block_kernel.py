"""Forward and backward of a part that is made of blocks: two and five batched matrix products a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..plan.blocks import Blocks, Run
from ..plan.cost_model import WORKSPACE
from ..plan.layout import Layout
from . import fused
from .operands import LOG2E, Backward, Forward, Scoring, Scratch, Weighing, merge, normalized, write

# The scores up to which an operation may be batched along two axes.
_COPIED = 2**18

Bias = tuple[slice, Tensor]  # columns of the windows, and what is added there: [C, blocks or 1, rows, columns]


@dataclass(frozen=True)
class _Lanes:
    """What one operation covers: query heads, key heads (as many, or one) and classes."""

    heads: slice
    key_heads: slice
    classes: slice


def forward(part: Blocks, x: Forward, scoring: Scoring, generator: torch.Generator, *, fresh: bool) -> None:
    """Adds the part to ``x.out`` and ``x.lse``; ``fresh`` says that they hold nothing yet."""
    laid = _Laid.out(part, x)
    out, lse = laid.layout.queries(x.out), laid.layout.queries(x.lse)
    if laid.layout.query_padding != (0, 0):
        fresh = False
    can_fuse = fused.can_do(laid.query, laid.value) and not scoring.dropout and scoring.softcap is None
    written = 0
    for run in part.runs:
        biases = _biases(part, run, laid.query)
        wholes: dict[int, tuple[Tensor, Tensor] | None] = {}
        put = write if fresh and run.first_row >= written else merge
        written = run.stop_row
        for lanes in _lanes(part, run, x):
            rows, row_lse = (_row_view(y, run, lanes) for y in (out, lse))
            if can_fuse and not laid.weighings:
                if lanes.classes.start not in wholes:
                    wholes[lanes.classes.start] = _whole(biases, run, lanes)
                values, part_lse = _fused(run, lanes, laid, wholes[lanes.classes.start], scoring)
            else:
                values, part_lse = _in_steps(run, lanes, laid, biases, scoring, generator)
            put(rows, row_lse, values.view(rows.shape), part_lse.view(row_lse.shape))
    laid.layout.write_queries(x.out, out)
    laid.layout.write_queries(x.lse, lse)


def backward(part: Blocks, x: Backward, scoring: Scoring, generator: torch.Generator) -> None:
    """Adds the part's share to the gradients of ``x``."""
    laid, scratch = _Laid.out(part, x), x.scratch
    layout = laid.layout
    grad_out, lse, delta = layout.queries(x.grad_out), layout.queries(x.lse), layout.queries(x.delta)
    grad_query = layout.queries(x.grad_query)
    grad_key, grad_value = _key_sums(layout, x.grad_key), _key_sums(layout, x.grad_value)
    for run in part.runs:
        biases = _biases(part, run, laid.query)
        for lanes in _lanes(part, run, x):
            weights, slope = _scores(run, lanes, laid, biases, scoring)
            weights.sub_(_rows(lse, run, lanes)).exp2_()
            rows_grad = _rows(grad_out, run, lanes)
            grad_weights = scratch.take("grad_weights", *weights.shape)
            torch.bmm(rows_grad, _windows(laid.value, run, lanes).mT, out=grad_weights)
            keep = scoring.keep(weights, generator)
            dropped = weights if keep is None else weights * keep
            _add_windows(grad_value, run, lanes, _transposed_product(dropped, rows_grad, scratch))
            if keep is not None:
                grad_weights.mul_(keep)
            grad_scores = grad_weights.sub_(_rows(delta, run, lanes)).mul_(weights)
            for weighing in laid.weighings:
                weighing.add_gradients(run, lanes, grad_scores)
            if slope is not None:
                grad_scores.mul_(slope)
            target = _row_view(grad_query, run, lanes)
            windows = _windows(laid.key, run, lanes)
            product = torch.bmm(grad_scores, windows, out=scratch.take("values", *weights.shape[:2], windows.shape[-1]))
            target.add_(product.view(target.shape), alpha=scoring.scale)
            product = _transposed_product(grad_scores, _rows(laid.query, run, lanes), scratch)
            _add_windows(grad_key, run, lanes, product, scoring.scale)
    layout.write_queries(x.grad_query, grad_query)
    _write_key_sums(layout, x.grad_key, grad_key)
    _write_key_sums(layout, x.grad_value, grad_value)
    for weighing in laid.weighings:
        weighing.write_gradients()


@dataclass
class _Laid:
    """A document in the layout of a part: query ``[h, C, q, D]``, key and value ``[g, C, k, D]``."""

    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    weighings: list[_LaidWeighing]
    scratch: Scratch

    @classmethod
    def out(cls, part: Blocks, x: Forward) -> _Laid:
        layout = part.layout.to(x.query.device)
        query, key, value = layout.queries(x.query), layout.keys(x.key), layout.keys(x.value)
        weighings = [_LaidWeighing.out(part, layout, weighing) for weighing in x.weighings] if part.weighted else []
        return cls(layout, query, key, value, weighings, x.scratch)


@dataclass
class _LaidWeighing:
    """A `Weighing` in the layout of a part, and the positions ``[C, q]`` and ``[C, k]``."""

    weighing: Weighing
    layout: Layout
    query: Tensor
    key: Tensor | None
    positions: tuple[Tensor, Tensor]
    grad_query: Tensor | None
    grad_key: Tensor | None

    @classmethod
    def out(cls, part: Blocks, layout: Layout, weighing: Weighing) -> _LaidWeighing:
        q, k = (x.to(weighing.query.device) for x in part.positions())
        return cls(
            weighing,
            layout,
            layout.queries(weighing.query),
            None if weighing.key is None else layout.keys(weighing.key),
            (q, k),
            None if weighing.grad_query is None else layout.queries(weighing.grad_query),
            None if weighing.grad_key is None else _key_sums(layout, weighing.grad_key),
        )

    @property
    def repeats(self) -> bool:
        """Whether all blocks of a run have the same weights: they depend on the distance only.

        Not where the layout starts with padding: that has no position, so the first block would not stand for all.
        """
        padded = self.layout.query_padding[0] or self.layout.key_padding[0]
        return self.weighing.constant and self.key is None and self.layout.columns is None and not padded

    def of(self, run: Run, lanes: _Lanes) -> Tensor:
        """The logarithm of the weights of a run ``[heads, classes or 1, blocks or 1, rows, width]``."""
        return self.weighing.log_weight(*self._tile(*self._of_one(run, lanes)))

    def add_gradients(self, run: Run, lanes: _Lanes, grad_scores: Tensor) -> None:
        if self.repeats:
            shape = _length(lanes.heads), _length(lanes.classes), run.blocks, run.rows, run.width
            grad_scores = grad_scores.view(shape).sum((1, 2))
        run, lanes = self._of_one(run, lanes)
        query, key, distance = self._tile(run, lanes)
        grads = self.weighing.gradients(query, key, distance, grad_scores)
        if self.grad_query is not None:
            _row_view(self.grad_query, run, lanes).add_(grads[0])
        if self.grad_key is not None:
            _add_windows(self.grad_key, run, lanes, grads[1].flatten(0, 2))

    def write_gradients(self) -> None:
        if self.grad_query is not None and self.weighing.grad_query is not None:
            self.layout.write_queries(self.weighing.grad_query, self.grad_query)
        if self.grad_key is not None and self.weighing.grad_key is not None:
            _write_key_sums(self.layout, self.weighing.grad_key, self.grad_key)

    def _of_one(self, run: Run, lanes: _Lanes) -> tuple[Run, _Lanes]:
        """The first block of a run, if it stands for all."""
        if not self.repeats:
            return run, lanes
        return replace(run, blocks=1), replace(lanes, classes=slice(lanes.classes.start, lanes.classes.start + 1))

    def _tile(self, run: Run, lanes: _Lanes) -> tuple[Tensor, Tensor | None, Tensor]:
        heads = _length(lanes.heads)
        key = None if self.key is None else _window_view(self.key, run, lanes, heads, 0, run.width)
        q, k = _grid_positions(self.positions, run)
        return _row_view(self.query, run, lanes), key, (q - k)[lanes.classes]


def _key_sums(layout: Layout, x: Tensor) -> Tensor:
    """Where gradients of keys are summed up: in ``x`` itself, if its layout is a view."""
    laid = layout.keys(x)
    return laid if _in_place(layout) else torch.zeros_like(laid)


def _write_key_sums(layout: Layout, x: Tensor, sums: Tensor) -> None:
    if not _in_place(layout):
        layout.add_keys(x, sums)


def _in_place(layout: Layout) -> bool:
    return layout.columns is None and layout.key_padding == (0, 0)


def _in_steps(
    run: Run, lanes: _Lanes, laid: _Laid, biases: list[Bias], scoring: Scoring, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Values and base-2 log-sum-exp of a run, ``[lanes * blocks, rows, D]`` and ``[..., 1]``."""
    scores, _ = _scores(run, lanes, laid, biases, scoring)
    peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(peak).exp2_()
    total = weights.sum(-1, keepdim=True)
    if (keep := scoring.keep(weights, generator)) is not None:
        weights.mul_(keep)
    values = laid.scratch.take("values", *weights.shape[:2], laid.value.shape[-1])
    return normalized(torch.bmm(weights, _windows(laid.value, run, lanes), out=values), peak, total)


def _fused(
    run: Run, lanes: _Lanes, laid: _Laid, bias: tuple[Tensor, Tensor] | None, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """The same by the fused kernel; ``bias`` is what `_whole` gives."""
    rows, keys, values = _rows(laid.query, run, lanes), _windows(laid.key, run, lanes), _windows(laid.value, run, lanes)
    if bias is None:
        return fused.attend(rows, keys, values, None, scoring.scale)
    added, blind = (x.expand(_length(lanes.heads), -1, run.blocks, -1, -1).flatten(0, 2) for x in bias)
    part, part_lse = fused.attend(rows, keys, values, added, scoring.scale)
    # What the kernel says of a row that sees nothing is not to be relied on.
    return part, part_lse.masked_fill_(blind, -torch.inf)


def _whole(biases: list[Bias], run: Run, lanes: _Lanes) -> tuple[Tensor, Tensor] | None:
    """The biases of a run's windows as one, for the classes of ``lanes``, and the rows that see nothing.

    ``[classes, blocks or 1, rows, width]`` and ``[..., 1]``.
    """
    if not biases:
        return None
    blocks = max(bias.shape[1] for _, bias in biases)
    like = biases[0][1]
    whole = like.new_zeros(_length(lanes.classes), blocks, run.rows, run.width)
    for columns, bias in biases:
        whole[..., columns] += bias[lanes.classes]
    return whole, whole.amax(-1, keepdim=True) == -torch.inf


def _scores(run: Run, lanes: _Lanes, laid: _Laid, biases: list[Bias], scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Masked scores in base 2 ``[lanes * blocks, rows, width]``, and the slope of the soft cap."""
    rows, windows = _rows(laid.query, run, lanes), _windows(laid.key, run, lanes).mT
    products = laid.scratch.take("scores", *rows.shape[:2], run.width)
    torch.baddbmm(products, rows, windows, beta=0, alpha=scoring.factor, out=products)
    scores, slope = scoring.bend(products)
    unflat = scores.view(-1, _length(lanes.classes), run.blocks, run.rows, run.width)
    for columns, bias in biases:
        unflat[..., columns].add_(bias[lanes.classes])
    for weighing in laid.weighings:
        unflat.add_(weighing.of(run, lanes), alpha=LOG2E)
    return scores, slope


def _lanes(part: Blocks, run: Run, x: Forward) -> Iterator[_Lanes]:
    """Cuts heads and classes so that an operation holds no more scores than the workspace.

    On a CPU an operation is batched along one axis, blocks or classes or heads: along two of them the windows, which
    overlap, would have to be copied, which only pays where there is so little to do that starting it takes longer.
    """
    size = run.pairs
    limit = max(1, WORKSPACE // size)
    few = limit if x.query.device.type != "cpu" else max(1, _COPIED // size)
    n_classes = min(part.classes, limit if run.blocks == 1 else few)
    n_heads = max(1, (limit if run.blocks == part.classes == 1 else few) // n_classes)
    for heads, key_heads in x.head_groups():
        one_to_one = x.group == 1
        for head in range(heads.start, heads.stop, n_heads):
            mine = slice(head, min(head + n_heads, heads.stop))
            shift = key_heads.start - heads.start
            keys = slice(mine.start + shift, mine.stop + shift) if one_to_one else key_heads
            for first in range(0, part.classes, n_classes):
                yield _Lanes(mine, keys, slice(first, min(first + n_classes, part.classes)))


def _row_view(x: Tensor, run: Run, lanes: _Lanes) -> Tensor:
    """The run's rows of ``[H, C, q, D]`` as ``[heads, classes, blocks, rows, D]``, a view."""
    (head, classes, row, column), rows = x.stride(), run.rows
    sizes = _length(lanes.heads), _length(lanes.classes), run.blocks, rows, x.shape[-1]
    start = x.storage_offset() + lanes.heads.start * head + lanes.classes.start * classes + run.first_row * row
    return x.as_strided(sizes, (head, classes, rows * row, row, column), start)


def _rows(x: Tensor, run: Run, lanes: _Lanes) -> Tensor:
    return _row_view(x, run, lanes).flatten(0, 2)


def _window_view(x: Tensor, run: Run, lanes: _Lanes, heads: int, start: int, width: int) -> Tensor:
    """For each block ``width`` keys from ``start`` in its window on: ``[heads, classes, blocks, width, D]``, a view.

    ``as_strided`` says in one operation what slicing and ``unfold`` need four for, which shows in the time.
    """
    head, classes, row, column = x.stride()
    sizes = heads, _length(lanes.classes), run.blocks, width, x.shape[-1]
    begin = lanes.key_heads.start * head + lanes.classes.start * classes + (run.first_key + start) * row
    shared = 0 if _length(lanes.key_heads) == 1 else head
    return x.as_strided(sizes, (shared, classes, run.rows * row, row, column), x.storage_offset() + begin)


def _windows(x: Tensor, run: Run, lanes: _Lanes) -> Tensor:
    """The run's windows of ``[G, C, k, D]`` as ``[lanes * blocks, width, D]``."""
    return _window_view(x, run, lanes, _length(lanes.heads), 0, run.width).flatten(0, 2)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _transposed_product(left: Tensor, right: Tensor, scratch: Scratch) -> Tensor:
    product = scratch.take("windows", left.shape[0], left.shape[2], right.shape[2])
    return torch.bmm(left.mT, right, out=product)


def _add_windows(total: Tensor, run: Run, lanes: _Lanes, windows: Tensor, factor: float = 1.0) -> None:
    """Adds ``[lanes * blocks, width, D]``, times ``factor``, where the windows came from.

    Windows overlap; slices of them that are as wide as a block do not.
    """
    windows = windows.view(-1, _length(lanes.classes), run.blocks, run.width, windows.shape[-1])
    heads = _length(lanes.key_heads)
    if heads < windows.shape[0]:
        windows = windows.sum(0, keepdim=True)
    step = run.width if run.blocks == 1 else run.rows
    for start in range(0, run.width, step):
        width = min(step, run.width - start)
        target = _window_view(total, run, lanes, heads, start, width)
        target.add_(windows.narrow(3, start, width), alpha=factor)


def _biases(part: Blocks, run: Run, like: Tensor) -> list[Bias]:
    """-inf where a row may not see a column of its window; only for the columns at the ends of which that is so."""
    ends = slice(0, run.left), slice(run.width - run.right, run.width)
    biases = [_edge(part, run, columns, like) for columns in ends if columns.start < columns.stop]
    return [*biases, _guard(part, run, like)] if part.guards else biases


def _edge(part: Blocks, run: Run, columns: slice, like: Tensor) -> Bias:
    blocks = 1 if run.uniform else run.blocks
    rows = slice(run.first_row, run.first_row + blocks * run.rows)
    window = run.first_key + torch.arange(blocks, dtype=torch.int32)[:, None] * run.rows
    first, stop = (bound[:, rows].unflatten(1, (blocks, run.rows)) - window for bound in (part.first, part.stop))
    column = torch.arange(columns.start, columns.stop, dtype=torch.int32)
    return columns, _as_bias((column >= first[..., None]) & (column < stop[..., None]), like)


def _guard(part: Blocks, run: Run, like: Tensor) -> Bias:
    q, k = torch.broadcast_tensors(*_grid_positions(part.positions(), run))
    allowed = torch.ones_like(q, dtype=torch.bool)
    for guard in part.guards:
        allowed &= guard.allows(q, k)
    return slice(0, run.width), _as_bias(allowed, like)


def _grid_positions(positions: tuple[Tensor, Tensor], run: Run) -> tuple[Tensor, Tensor]:
    """The positions of a run's rows ``[C, blocks, rows, 1]`` and of its windows' keys ``[C, blocks, 1, width]``."""
    q, k = positions
    q = q[:, run.first_row : run.stop_row].unflatten(1, (run.blocks, run.rows))
    k = k[:, run.first_key : run.first_key + (run.blocks - 1) * run.rows + run.width].unfold(1, run.width, run.rows)
    return q[..., None], k[..., None, :]


def _as_bias(allowed: Tensor, like: Tensor) -> Tensor:
    bias = torch.zeros(allowed.shape, dtype=like.dtype).masked_fill_(~allowed, -torch.inf)
    return bias.to(like.device)
