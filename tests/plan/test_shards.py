"""The keys that shards exchange, and attention over keys with gaps, against brute force and the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import parse_mask
from hf_masking.attention import masked_attention
from hf_masking.plan import Documents, Lengths, plan_of
from hf_masking.plan.shards import Shards, Transfers, needed_columns

from ..attention.problems import LargestTensor
from ..masks.strategies import expressions

CATALOGUE = ["causal", "window:4", "block_causal:4", "block_local:4,1", "offsets:0,1,3,17", "strided:5", "dilated:3,2",
             "log_sparse", "sinks:2", "prefix:9", "spans:2,9,12,30", "summary:4,2"]  # fmt: skip


def documents_of(rows):
    ids = torch.tensor(rows)
    return Documents.from_ids(ids, torch.arange(ids.shape[1]))


def brute_force(mask, documents, shards):
    """Return which columns of other ranks some query of each rank may attend to."""
    allowed = documents.allows(mask).any(0)
    needed = torch.stack([allowed[shards.columns(rank)].any(0) for rank in range(len(shards.sizes))])
    for rank in range(len(shards.sizes)):
        needed[rank, shards.columns(rank)] = False
    return needed


@pytest.mark.parametrize("spec", CATALOGUE)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_need_exactly_what_a_pattern_allows(spec, ranks):
    mask, shards = parse_mask(spec), Shards.even(41, ranks)
    for rows in ([[0] * 41], [[0] * 15 + [1] * 20 + [-1] * 6, [-1] * 3 + [0] * 30 + [1, 0, 1, 0] * 2]):
        documents = documents_of(rows)
        assert torch.equal(needed_columns(mask, documents, shards), brute_force(mask, documents, shards))


def test_the_same_rows_are_sent_and_received():
    shards = Shards.even(37, 4)
    needed = needed_columns(parse_mask("window:13|sinks:2"), documents_of([[0] * 37]), shards)
    transfers = [Transfers.of_rank(needed, shards, rank) for rank in range(4)]
    for rank, one in enumerate(transfers):
        assert one.sent_to == tuple(other.received_from[rank] for other in transfers)
        sent = [(one.sent + shards.columns(rank).start).split(one.sent_to)[other].tolist() for other in range(4)]
        for other, columns in enumerate(sent):
            assert set(columns) <= set(transfers[other].held.tolist())
        assert one.held[one.own].tolist() == list(range(37))[shards.columns(rank)]
    assert transfers[3].held.tolist() == [0, 1, *range(16, 37)]


def test_shards_are_even_and_hold_every_column():
    assert Shards.even(11, 4) == Shards((3, 3, 3, 2))
    assert [Shards.even(11, 4).columns(rank) for rank in (0, 3)] == [slice(0, 3), slice(9, 11)]
    with pytest.raises(ValueError, match="3 tokens cannot be cut into 4 shards; use 1 to 3"):
        Shards.even(3, 4)


rows = st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 25)), min_size=1, max_size=6)


@settings(max_examples=150)
@given(expressions, st.integers(1, 4), st.integers(4, 60), st.none() | st.tuples(rows, rows))
def test_a_rank_needs_no_other_keys(mask, ranks, length, packed):
    """Each rank attends over the keys that it holds, which have gaps; together they are attention over all keys."""
    runs = packed or [[(0, length)]]
    ids = [([i for i, n in row for _ in range(n)] * length)[:length] for row in runs]
    documents, shards = documents_of(ids), Shards.even(length, ranks)
    generator = torch.Generator().manual_seed(length)
    inputs = [
        torch.randn(len(ids), heads, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (2, 1, 1)
    ]
    weight = torch.randn(len(ids), 2, length, 4, generator=generator, dtype=torch.float64)

    def with_gradients(output):
        return [output, *torch.autograd.grad((output * weight).sum(), inputs)]

    wanted = with_gradients(masked_attention(*inputs, mask, documents=documents, backend="reference"))
    needed = needed_columns(mask, documents, shards)
    for backend in ("blockwise", "sdpa", "gathered"):
        outputs = []
        for rank in range(ranks):
            held, mine = Transfers.of_rank(needed, shards, rank), shards.columns(rank)
            query, key, value = inputs[0][:, :, mine], inputs[1][:, :, held.held], inputs[2][:, :, held.held]
            local = held.held_documents(documents.of_queries(mine))
            outputs.append(masked_attention(query, key, value, mask, documents=local, backend=backend))
        for one, other in zip(with_gradients(torch.cat(outputs, dim=2)), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("spec", "gaps"),
    [("window:256|sinks:4", 1), ("dilated:16,16|sinks:4", 1), ("summary:128,8|window:256", 22), ("offsets:0,2000", 1)],
)
def test_gaps_between_keys_cost_nothing(spec, gaps):
    """The last of four shards touches as few pairs as if it had all keys."""
    mask, shards = parse_mask(spec), Shards.even(4096, 4)
    documents = documents_of([[0] * 4096])
    transfers = Transfers.of_rank(needed_columns(mask, documents, shards), shards, 3)
    (segment,) = transfers.held_documents(documents.of_queries(shards.columns(3))).segments
    assert len(segment.lengths.gaps) == gaps and segment.lengths.stop_key == 4096
    whole = plan_of(mask, Lengths(3072, 1024, 0, 4096))
    assert plan_of(mask, segment.lengths).touched <= whole.touched


def test_the_table_is_made_without_pairs():
    with LargestTensor() as largest:
        length = 2**15
        for spec in ("window:256|sinks:4", "strided:64", "log_sparse", "summary:64,2", "causal-window:9"):
            needed_columns(parse_mask(spec), Documents.single(length, length), Shards.even(length, 4))
    assert largest.elements <= 4 * length
