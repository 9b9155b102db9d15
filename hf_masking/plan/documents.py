"""The document of every query and key, and their positions in it.

A batch is a list of documents. Padding and packing are nothing but where documents start and end, so no mask ever
sees padding or a neighbouring document.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..masks import Mask
from ..masks.marks import Bounds, Marks
from .layout import Lengths

PADDING = -1

Columns = slice | Tensor


@dataclass(frozen=True)
class Segment:
    """The positions of one document of one row, and the columns of the batch that hold its queries and keys.

    marks: its marks; None if they are not known.
    """

    row: int
    lengths: Lengths
    queries: Columns
    keys: Columns
    marks: Marks | None = None

    def bind(self, mask: Mask) -> Mask:
        """Return the mask as it is in this document."""
        return mask if self.marks is None else mask.bind(self.marks)


@dataclass(frozen=True, eq=False)
class Documents:
    """Positions and documents of queries ``[B, N]`` and keys ``[B, M]``, int32; B is 1 if all rows are alike.

    A position is the index of a token among the real tokens of its document, and PADDING (-1) for padding.

    key_marks: ``[B, 2, M]``, the marked span of each key, negative for none, and the number of prompt tokens of its
        document; None if they are not known.
    scattered: the positions of a document's keys may have gaps, as in a cache that has evicted keys.
    """

    query_positions: Tensor
    query_ids: Tensor
    key_positions: Tensor
    key_ids: Tensor
    key_marks: Tensor | None = None
    scattered: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        marks = 0 if self.key_marks is None else self.key_marks.nbytes
        return marks + sum(x.nbytes for x in (self.query_positions, self.query_ids, self.key_positions, self.key_ids))

    @staticmethod
    def single(n_queries: int, n_keys: int, device: torch.device | str = "cpu") -> Documents:
        """Return one document per row, without padding; the queries are its last positions."""
        # A compiled graph would ignore the memo, and warn.
        return (_single if torch.compiler.is_compiling() else _single_once)(n_queries, n_keys, device)

    @classmethod
    def from_ids(cls, ids: Tensor, query_columns: Tensor, marks: Tensor | None = None) -> Documents:
        """Return the positions that follow from the document of every key.

        Parameters:
            ids: ``[B, M]`` integers, negative for padding; equal ids in a row are one document, wherever they are.
            query_columns: ``[N]``, the columns of ``ids`` that are queries.
            marks: ``[B, 2, M]``, those of each key.
        """
        positions = positions_in_documents(ids)
        ids = ids.to(torch.int32)
        return cls(positions[:, query_columns], ids[:, query_columns], positions, ids, marks)

    @classmethod
    def decode(cls, rows: Tensor, n_keys: int) -> Documents:
        """Return what `encode` made into one tensor."""
        keys, queries = rows.split([n_keys, rows.shape[-1] - n_keys], dim=-1)
        marks = keys[:, 2:] if rows.shape[1] > 2 else None
        return cls(queries[:, 0], queries[:, 1], keys[:, 0], keys[:, 1], marks)

    def encode(self) -> Tensor:
        """Return positions and documents, of all keys and then of all queries, int32 ``[B, 2, M + N]``.

        If marks are known, two more rows have those of each key.
        """
        positions = torch.cat([self.key_positions, self.query_positions], dim=-1)
        ids = torch.cat([self.key_ids, self.query_ids], dim=-1)
        rows = torch.stack([positions, ids], dim=1)
        if self.key_marks is None:
            return rows
        return torch.cat([rows, torch.nn.functional.pad(self.key_marks.int(), (0, self.query_ids.shape[-1]))], dim=1)

    @property
    def alike(self) -> bool:
        """True if the first row stands for all."""
        return self.query_positions.shape[0] == 1

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The documents that have queries, row by row; those of one row, if all are alike.

        Raises:
            ValueError: the positions of a document's queries are not consecutive, or those of its keys do not ascend.
        """
        described = [x.cpu() for x in (self.query_positions, self.query_ids, self.key_positions, self.key_ids)]
        marks = [None] * len(described[0]) if self.key_marks is None else list(self.key_marks.cpu())
        rows = enumerate(zip(*described, marks, strict=True))
        return tuple(segment for index, row in rows for segment in _segments_of_row(index, *row))

    def rows_of(self, segment: Segment, batch: int) -> range:
        """Return the rows of a batch of this size to which a segment applies: all, if they are alike."""
        return range(batch) if self.alike else range(segment.row, segment.row + 1)

    def allows(self, mask: Mask) -> Tensor:
        """Return the pairs that ``mask`` allows inside each document, as booleans ``[B, N, M]``."""
        queries, keys = self.query_positions[:, :, None], self.key_positions[:, None, :]
        same = (self.query_ids[:, :, None] == self.key_ids[:, None, :]) & (queries >= 0) & (keys >= 0)
        if not mask.needs or self.key_marks is None:
            return mask.allows(queries, keys) & same
        allowed = torch.zeros_like(same)
        for row, (ids, positions, marks) in enumerate(
            zip(self.key_ids, self.key_positions, self.key_marks, strict=True)
        ):
            for document, columns in _columns_by_document(ids).items():
                bound = mask.bind(_marks(positions[columns], marks[:, columns]))
                allowed[row] |= bound.allows(queries[row], keys[row]) & (ids == document)
        return allowed & same

    def of_queries(self, rows: slice) -> Documents:
        """Return the same for some of the queries."""
        return replace(self, query_positions=self.query_positions[:, rows], query_ids=self.query_ids[:, rows])

    def of_keys(self, columns: Tensor) -> Documents:
        """Return the same for some of the keys."""
        marks = None if self.key_marks is None else self.key_marks[..., columns]
        positions, ids = self.key_positions[:, columns], self.key_ids[:, columns]
        return replace(self, key_positions=positions, key_ids=ids, key_marks=marks, scattered=True)


def _single(n_queries: int, n_keys: int, device: torch.device | str) -> Documents:
    positions = torch.arange(n_keys, dtype=torch.int32, device=device)[None]
    ids = torch.zeros_like(positions)
    return Documents(positions[:, n_keys - n_queries :], ids[:, n_keys - n_queries :], positions, ids)


_single_once = functools.lru_cache(maxsize=16)(_single)


def _segments_of_row(
    row: int, query_positions: Tensor, query_ids: Tensor, key_positions: Tensor, key_ids: Tensor, marks: Tensor | None
) -> Iterator[Segment]:
    queries, keys = _columns_by_document(query_ids), _columns_by_document(key_ids)
    for document, query_columns in queries.items():
        key_columns = keys.get(document)
        if key_columns is None:
            continue
        first_query, n_queries = _consecutive(query_positions[query_columns])
        first_key, gaps = _ascending(key_positions[key_columns])
        lengths = Lengths(first_query, n_queries, first_key, len(key_columns), gaps)
        marked = None if marks is None else _marks(key_positions[key_columns], marks[:, key_columns])
        yield Segment(row, lengths, _as_slice(query_columns), _as_slice(key_columns), marked)


def _marks(positions: Tensor, marks: Tensor) -> Marks:
    """Return the marks of one document from those of its keys ``[2, M]``."""
    spans, prompts = marks
    bounds = []
    for columns in _columns_by_document(spans).values():
        first, length = _consecutive(positions[columns], "a marked span's")
        bounds.append((first, first + length))
    return Marks(tuple(sorted(bounds)), int(prompts[0]))


def _columns_by_document(ids: Tensor) -> dict[int, Tensor]:
    order = ids.argsort(stable=True)
    documents, counts = ids.unique(return_counts=True)
    columns = order.split(counts.tolist())
    return {document: mine for document, mine in zip(documents.tolist(), columns, strict=True) if document >= 0}


def _consecutive(positions: Tensor, whose: str = "a document's") -> tuple[int, int]:
    first = int(positions[0])
    if int(positions[-1]) - first != len(positions) - 1 or bool((positions.diff() != 1).any()):
        raise ValueError(f"the positions of {whose} tokens must be consecutive, got {positions.tolist()[:8]}...")
    return first, len(positions)


def _ascending(positions: Tensor) -> tuple[int, Bounds]:
    """Return the first of the positions of keys, and the gaps between them."""
    steps = positions.diff()
    if bool((steps < 1).any()):
        raise ValueError(f"the positions of a document's keys must ascend, got {positions.tolist()[:8]}...")
    after = (steps > 1).nonzero()[:, 0]
    gaps = zip((positions[after] + 1).tolist(), positions[after + 1].tolist(), strict=True)
    return int(positions[0]), tuple(gaps)


def _as_slice(columns: Tensor) -> Columns:
    first, last = int(columns[0]), int(columns[-1])
    return slice(first, last + 1) if last - first == len(columns) - 1 else columns


def positions_in_documents(ids: Tensor) -> Tensor:
    """Return the index of each token among those of its row with the same id, int32; PADDING for a negative id."""
    order = ids.argsort(dim=-1, stable=True)
    in_order = ids.gather(-1, order)
    columns = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    start_of_run = torch.where(starts, columns, 0).cummax(-1).values
    positions = torch.empty_like(columns).scatter(-1, order, columns - start_of_run)
    return torch.where(ids < 0, PADDING, positions).to(torch.int32)


def renumbered(ids: Tensor) -> Tensor:
    """Return small numbers for the documents of each row: ids may be any int64, and are stored as int32."""
    order = ids.argsort(dim=-1, stable=True)
    in_order = ids.gather(-1, order)
    starts = torch.zeros_like(ids)
    starts[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    return torch.where(ids < 0, PADDING, torch.empty_like(order).scatter(-1, order, starts.cumsum(-1)))


def ids_from_padding(attention_mask: Tensor) -> Tensor:
    """Return one document per row: 0 for real tokens, PADDING for others. A hole starts no new document."""
    return torch.where(attention_mask.bool(), 0, PADDING)


def ids_from_position_ids(position_ids: Tensor, real: Tensor) -> Tensor:
    """Return documents that start where the position id of a real token is not greater than that of the one before.

    Parameters:
        position_ids: ``[B, N]`` integers, as given to the model.
        real: ``[B, N]`` booleans, False for padding.
    """
    columns = torch.arange(position_ids.shape[-1], device=position_ids.device).expand_as(position_ids)
    last_real = torch.where(real, columns, -1).cummax(-1).values
    predecessor = torch.nn.functional.pad(last_real[:, :-1], (1, 0), value=-1)
    previous = position_ids.gather(-1, predecessor.clamp(min=0))
    starts = real & (predecessor >= 0) & (position_ids <= previous)
    return torch.where(real, starts.cumsum(-1), PADDING)
