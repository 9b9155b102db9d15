"""The layout of queries and keys in which each query attends to one interval of neighbouring keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..masks import Bounds
from ..masks.intervals import EVERY_KEY, Intervals

_MISSING = -1  # the position of a key that is not there


@dataclass(frozen=True)
class Lengths:
    """The positions of a document's queries and keys: ``[first_query, first_query + queries)``, keys likewise.

    gaps: half-open intervals of positions between the first key and the last whose keys are missing, in order. The
        mask may allow none of them: then the keys of an interval of positions are neighbours, gaps or not.
    """

    first_query: int
    queries: int
    first_key: int
    keys: int
    gaps: Bounds = ()

    def query_positions(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the positions of the queries, int32 ``[N]``."""
        return _range(self.first_query, self.queries, device)

    def key_positions(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the positions of the keys, int32 ``[M]``."""
        positions = _range(self.first_key, self.stop_key - self.first_key, device)
        for first, stop in self.gaps:
            positions[first - self.first_key : stop - self.first_key] = _MISSING
        return positions if not self.gaps else positions[positions != _MISSING]

    @property
    def stop_key(self) -> int:
        """The position after the last key."""
        return self.first_key + self.keys + sum(stop - first for first, stop in self.gaps)

    def keys_before(self, positions: Tensor) -> Tensor:
        """Return the number of keys before each position, int32: at a key's position its index."""
        if not self.gaps:
            return (positions - self.first_key).int()
        return torch.searchsorted(self.key_positions(), positions.int().contiguous(), out_int32=True)


@dataclass(frozen=True, eq=False)
class Layout:
    """A regrouping of positions into C classes: with a stride s there are s, and row u of class c is ``s * u + c``.

    columns: the keys that take part, if not all do.
    query_padding, key_padding: what completes the first and the last stride.
    """

    stride: int = 1
    query_padding: tuple[int, int] = (0, 0)
    key_padding: tuple[int, int] = (0, 0)
    columns: Tensor | None = None

    def queries(self, x: Tensor) -> Tensor:
        """Return ``[..., N, D]`` as ``[..., C, N/C, D]``; a view, unless there is padding."""
        return _to_classes(x, self.stride, self.query_padding)

    def keys(self, x: Tensor) -> Tensor:
        """Return ``[..., M, D]`` as ``[..., C, M/C, D]``; a view, unless `copies_keys`."""
        x = x if self.columns is None else x.index_select(-2, self.columns)
        return _to_classes(x, self.stride, self.key_padding)

    @property
    def copies_keys(self) -> bool:
        """True if `keys` copies instead of returning a view."""
        return self.columns is not None or self.key_padding != (0, 0)

    def write_queries(self, x: Tensor, classes: Tensor) -> None:
        """Write back what `queries` returned, if that was a copy."""
        if self.query_padding != (0, 0):
            x.copy_(_from_classes(classes, self.query_padding))

    def add_keys(self, x: Tensor, classes: Tensor) -> None:
        """Add to ``x`` what was summed up in the layout of `keys`."""
        summed = _from_classes(classes, self.key_padding)
        if self.columns is None:
            x.add_(summed)
        else:
            x.index_add_(-2, self.columns, summed)

    def to(self, device: torch.device) -> Layout:
        columns = None if self.columns is None else self.columns.to(device)
        return Layout(self.stride, self.query_padding, self.key_padding, columns)


def _to_classes(x: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    if padding != (0, 0):
        x = pad(x, (0, 0, *padding))
    return x.unflatten(-2, (x.shape[-2] // stride, stride)).transpose(-2, -3)


def _from_classes(classes: Tensor, padding: tuple[int, int]) -> Tensor:
    x = classes.transpose(-2, -3).flatten(-3, -2)
    return x[..., padding[0] : x.shape[-2] - padding[1], :]


def lay_out(piece: Intervals, lengths: Lengths) -> tuple[Layout, Tensor, Tensor]:
    """Return the layout of a clipped piece, and the interval of each row in it: first and stop, int32 ``[C, N/C]``."""
    stride, keys = piece.lattice.stride, piece.lattice.keys
    first, stop = piece.first, piece.stop
    if keys != EVERY_KEY:
        of_class = keys.contains(lengths.key_positions())
        before = pad(of_class.cumsum(0), (1, 0)).int()
        first, stop = (before[lengths.keys_before(bound)][None] for bound in (first, stop))
        return Layout(columns=of_class.nonzero()[:, 0]), first, stop
    if stride >= max(lengths.first_query + lengths.queries, lengths.stop_key):
        # Only distance 0 is left; one class per residue would take memory by the stride instead of the length.
        q = lengths.query_positions()
        first, stop, stride = torch.maximum(first, q), torch.minimum(stop, q + 1), 1
    if stride == 1:
        return Layout(), lengths.keys_before(first)[None], lengths.keys_before(stop)[None]
    return _lay_out_classes(first, stop, stride, lengths)


def _lay_out_classes(first: Tensor, stop: Tensor, stride: int, lengths: Lengths) -> tuple[Layout, Tensor, Tensor]:
    """Return the layout of a stride, whose keys are regrouped by residue, and the intervals in it."""
    first_key, keys, columns = _without_gaps(first, stop, lengths)
    layout = Layout(
        stride,
        _completion(lengths.first_query, lengths.queries, stride),
        _completion(first_key, keys, stride),
        columns,
    )
    origin = first_key - layout.key_padding[0] + torch.arange(stride)[:, None, None]
    real = layout.queries(torch.ones_like(first)[:, None]) > 0
    ranks = [-((origin - layout.queries(bound[:, None])) // stride) for bound in (first, stop)]
    # The rows that padding has added are empty: their intervals start and stop at key 0.
    first, stop = (torch.where(real, bound, 0)[..., 0].int() for bound in ranks)
    return layout, first, stop


def _without_gaps(first: Tensor, stop: Tensor, lengths: Lengths) -> tuple[int, int, Tensor | None]:
    """Return the first position and the number of keys of a layout, and their columns: None for all keys as they are.

    Classes are regular, so the gaps between the keys of these intervals are filled. Any key will do, because the
    intervals hold none of these places.
    """
    seen = first < stop
    if not lengths.gaps or not bool(seen.any()):
        return lengths.first_key, lengths.keys, None
    least, end = int(first[seen].min()), int(stop[seen].max())
    positions = lengths.key_positions()
    inside = ((positions >= least) & (positions < end)).nonzero()[:, 0]
    columns = torch.zeros(end - least, dtype=torch.long)
    columns[(positions[inside] - least).long()] = inside
    return least, end - least, columns


def _range(first: int, length: int, device: torch.device | str) -> Tensor:
    # Half the memory of int64, which is where the time of making a plan goes.
    return torch.arange(first, first + length, dtype=torch.int32, device=device)


def _completion(first: int, length: int, stride: int) -> tuple[int, int]:
    before = first % stride
    return before, -(before + length) % stride
