"""The tasks of the blockwise backend: the parts that are computed for each document and group of query heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..adaptive import Features
from ..plan import Part, Segment, Selected, adaptive
from .inputs import Inputs


@dataclass(frozen=True)
class Task:
    """The parts of a mask that are computed for some query heads of one document in one row."""

    row: int
    segment: Segment
    parts: tuple[Part | Selected, ...]
    heads: slice

    def queries_of(self, x: Tensor) -> Tensor:
        """Return this task's queries of ``[B, H, N, D]``; a copy if they are scattered over the row."""
        return x[self.row, self.heads][:, self.segment.queries]

    def keys_of(self, x: Tensor) -> Tensor:
        """Return this task's keys of ``[B, G, M, D]``, of all key heads; a copy if they are scattered over the row."""
        return x[self.row][:, self.segment.keys]

    def write_queries(self, x: Tensor, queries: Tensor) -> None:
        """Write back what `queries_of` returned, if that was a copy."""
        if not isinstance(self.segment.queries, slice):
            x[self.row, self.heads, self.segment.queries] = queries

    def write_keys(self, x: Tensor, keys: Tensor) -> None:
        """Write back what `keys_of` returned, if that was a copy."""
        if not isinstance(self.segment.keys, slice):
            x[self.row, :, self.segment.keys] = keys


def tasks_of(inputs: Inputs) -> list[Task]:
    """Return the tasks of a call, document by document."""
    return list(_adaptive_tasks(inputs) if inputs.mask.is_adaptive else _static_tasks(inputs))


def _static_tasks(inputs: Inputs) -> Iterator[Task]:
    for document_mask in inputs.document_masks:
        for row in inputs.documents.rows_of(document_mask.segment, len(inputs.query)):
            yield Task(row, document_mask.segment, document_mask.plan.parts, document_mask.heads)


def _adaptive_tasks(inputs: Inputs) -> Iterator[Task]:
    query, key = inputs.query.detach(), inputs.key.detach()
    for segment in inputs.documents.segments:
        for row in inputs.documents.rows_of(segment, len(query)):
            features = tuple(_of_document(one, row, segment) for one in inputs.features)
            document = adaptive.Document(segment, query[row][:, segment.queries], key[row][:, segment.keys], features)
            for heads, parts in adaptive.parts_by_heads(inputs.mask.union, document):
                yield Task(row, segment, parts, heads)


def _of_document(features: Features, row: int, segment: Segment) -> Features:
    """Return the features of one document of one row."""
    query, key = (None if x is None else x[row if len(x) > 1 else 0].detach() for x in features.tensors)
    assert query is not None
    query = query if query.shape[1] == 1 else query[:, segment.queries]
    return Features(query, key if key is None else key[:, segment.keys], features.hard)
