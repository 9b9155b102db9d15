"""Documents and positions of a batch."""

import pytest
import torch

from hf_masking.plan import Documents, Lengths, Segment
from hf_masking.plan.documents import ids_from_padding, ids_from_position_ids, positions_in_documents


def test_positions_in_documents():
    ids = torch.tensor([[-1, 0, 0, 1, -1, 1, 0], [3, 3, 3, 3, 3, 3, 3]])
    expected = torch.tensor([[-1, 0, 1, 0, -1, 1, 2], [0, 1, 2, 3, 4, 5, 6]], dtype=torch.int32)
    assert torch.equal(positions_in_documents(ids), expected)


def test_documents_from_position_ids():
    real = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1]]).bool()
    # A hole repeats a position without starting a document; a real token that repeats one does start it.
    position_ids = torch.tensor([[1, 0, 1, 2, 2, 3, 0, 0]])
    assert ids_from_position_ids(position_ids, real).tolist() == [[-1, 0, 0, 0, -1, 0, 1, 2]]
    assert ids_from_padding(real).tolist() == [[-1, 0, 0, 0, -1, 0, 0, 0]]


def test_segments_are_the_documents_with_queries():
    ids = torch.tensor([[-1, -1, 0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0, -1]])
    segments = Documents.from_ids(ids, torch.arange(3, 8)).segments
    assert segments[:2] == (
        Segment(0, Lengths(1, 2, 0, 3), slice(0, 2), slice(2, 5)),
        Segment(0, Lengths(0, 3, 0, 3), slice(2, 5), slice(5, 8)),
    )
    (scattered,) = segments[2:]
    assert scattered.lengths == Lengths(2, 4, 0, 6) and scattered.queries == slice(0, 4)
    assert scattered.keys.tolist() == [0, 1, 3, 4, 5, 6]


def test_positions_with_gaps_are_refused():
    positions = torch.tensor([[0, 1, 3]], dtype=torch.int32)
    documents = Documents(positions, torch.zeros_like(positions), positions, torch.zeros_like(positions))
    with pytest.raises(ValueError, match="must be consecutive"):
        _ = documents.segments
