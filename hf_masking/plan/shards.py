"""Work out which keys the shards of a sequence exchange: it follows from the mask, so every rank has the whole table.

A rank holds its own keys, and those of other ranks that its queries may attend to. Rows of a batch that differ exchange
the columns that any of them needs, and query heads that differ exchange the keys that any of them needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..masks import MaskExpression
from ..masks.intervals import EVERY_KEY, Intervals
from .documents import Documents, Segment
from .layout import Lengths
from .plan import pieces_of


@dataclass(frozen=True)
class Shards:
    """The columns of a sequence, cut into one stretch for each rank, in order.

    sizes: the number of columns of each rank.
    """

    sizes: tuple[int, ...]

    @classmethod
    def even(cls, length: int, ranks: int) -> Shards:
        """Return shards of one size; the first ones have a column more where the length is no multiple of the ranks.

        Raises:
            ValueError: there are fewer columns than ranks.
        """
        if not 1 <= ranks <= length:
            raise ValueError(f"a sequence of {length} tokens cannot be cut into {ranks} shards; use 1 to {length}")
        return cls(tuple(length // ranks + (rank < length % ranks) for rank in range(ranks)))

    @property
    def edges(self) -> tuple[int, ...]:
        """The first column of each rank, and the one after the last."""
        edges = [0]
        for size in self.sizes:
            edges.append(edges[-1] + size)
        return tuple(edges)

    def columns(self, rank: int) -> slice:
        """Return the columns of a rank."""
        return slice(*self.edges[rank : rank + 2])


@dataclass(frozen=True, eq=False)
class Transfers:
    """The keys that one rank sends and receives in one layer, and those that it then holds.

    sent: the columns to send ``[S]``, counted from the first of its shard; those for the first rank come first.
    sent_to, received_from: their number for each rank; a rank sends itself nothing.
    own: the place of the rank's own keys among those that it holds.
    held: the columns of all keys that it holds ``[M]``, ascending.
    """

    sent: Tensor
    sent_to: tuple[int, ...]
    received_from: tuple[int, ...]
    own: slice
    held: Tensor

    @classmethod
    def of_rank(cls, needed: Tensor, shards: Shards, rank: int) -> Transfers:
        """Return the transfers of a rank, from the table of `needed_columns`."""
        mine = shards.columns(rank)
        sent = needed[:, mine]
        received_from = tuple(int(needed[rank, shards.columns(other)].sum()) for other in range(len(shards.sizes)))
        before = sum(received_from[:rank])
        held = needed[rank].clone()
        held[mine] = True
        return cls(
            sent.nonzero()[:, 1],
            tuple(sent.sum(1).tolist()),
            received_from,
            slice(before, before + shards.sizes[rank]),
            held.nonzero()[:, 0],
        )

    def held_documents(self, documents: Documents) -> Documents:
        """Return the documents of some queries and all keys with only the keys that the rank holds."""
        return replace(documents.of_keys(self.held.to(documents.key_ids.device)), scattered=False)


def needed_columns(mask: MaskExpression, documents: Documents, shards: Shards) -> Tensor:
    """Return which columns of other ranks each rank needs, as booleans ``[ranks, columns]``.

    It takes arithmetic on a few numbers per query, O(N), never on pairs. A mask that is too irregular for intervals
    needs every key that they may hold.

    Parameters:
        documents: of all keys; the queries in it are not looked at.
    """
    ids, positions = documents.key_ids.cpu(), documents.key_positions.cpu()
    marks = None if documents.key_marks is None else documents.key_marks.cpu()
    whole = Documents(positions, ids, positions, ids, marks)
    needed = torch.zeros(len(shards.sizes), shards.edges[-1], dtype=torch.bool)
    for segment in whole.segments:
        for rank, lengths in _parts(segment, shards):
            needed[rank, segment.keys] |= _seen(mask, segment, lengths)
    for rank in range(len(shards.sizes)):
        needed[rank, shards.columns(rank)] = False
    return needed


def _parts(segment: Segment, shards: Shards) -> Iterator[tuple[int, Lengths]]:
    """Yield the ranks that have queries of a document, and these queries; none where a single rank has all of it."""
    if isinstance(segment.keys, slice):
        stop = segment.lengths.keys
        edges = [min(max(edge - segment.keys.start, 0), stop) for edge in shards.edges]
    else:
        edges = torch.searchsorted(segment.keys, torch.tensor(shards.edges)).tolist()
    sizes = [after - before for before, after in itertools.pairwise(edges)]
    if max(sizes) == segment.lengths.keys:
        return
    for rank, size in enumerate(sizes):
        if size:
            yield rank, replace(segment.lengths, first_query=edges[rank], queries=size)


def _seen(mask: MaskExpression, segment: Segment, lengths: Lengths) -> Tensor:
    """Return which keys of a document some of its queries may attend to, as booleans ``[M]``."""
    seen = torch.zeros(lengths.keys, dtype=torch.bool)
    for member in mask.heads:
        for piece in pieces_of(segment.bind(member), lengths):
            seen |= _seen_in_piece(piece, lengths)
    if segment.marks is not None:
        # Bounds of marked spans are read off the keys, so these come whole.
        for first, stop in segment.marks.spans:
            seen[first:stop] = True
    return seen


def _seen_in_piece(piece: Intervals, lengths: Lengths) -> Tensor:
    """Return which keys are in some interval of a clipped piece; each residue of its stride is counted on its own."""
    stride, keys, real = piece.lattice.stride, lengths.keys, piece.first < piece.stop
    q, first, stop = (x[real].long() for x in (lengths.query_positions(), piece.first, piece.stop))
    if stride >= keys:
        # Only distance 0 is left.
        seen = torch.zeros(keys, dtype=torch.bool)
        seen[q[(first <= q) & (q < stop)]] = True
        return seen
    residue = q % stride
    changes = torch.zeros((-(-keys // stride) + 1) * stride, dtype=torch.int32)
    for bound, change in ((first, 1), (stop, -1)):
        # The first key at or after the bound that has the residue of the query.
        at = bound + (residue - bound) % stride
        changes.index_add_(0, at, torch.full_like(at, change, dtype=torch.int32))
    seen = (changes.view(-1, stride).cumsum(0) > 0).flatten()[:keys]
    if piece.lattice.keys != EVERY_KEY:
        seen &= piece.lattice.keys.contains(lengths.key_positions())
    return seen
