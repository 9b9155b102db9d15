"""The tiles of a batch that a mask touches."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import parse_mask
from hf_masking.masks import Tile
from hf_masking.plan import Documents
from hf_masking.plan.shards import Shards, Transfers, needed_columns
from hf_masking.plan.tiles import tiles_of_batch

from ..masks.strategies import expressions


@given(
    expressions,
    st.lists(st.lists(st.integers(-1, 2), min_size=30, max_size=30).map(sorted), min_size=2, max_size=2),
    st.integers(1, 30),
    st.booleans(),
)
@settings(max_examples=500)
def test_tiles_of_a_batch_are_sound(mask, ids, queries, gaps):
    documents = Documents.from_ids(torch.tensor(ids), torch.arange(30 - queries, 30))
    if gaps:
        # As under sequence parallelism: only the keys that the last queries may attend to.
        shards = Shards((30 - queries, queries)) if queries < 30 else Shards((30,))
        transfers = Transfers.of_rank(needed_columns(mask, documents, shards), shards, len(shards.sizes) - 1)
        documents = transfers.held_documents(documents)
    tiles, block = tiles_of_batch(mask, documents, 4), 4
    allowed = documents.allows(mask)
    for row, query_block, key_block in torch.cartesian_prod(*(torch.arange(n) for n in tiles.shape)).tolist():
        tile = allowed[row, query_block * block :, key_block * block :][:block, :block]
        said = tiles[row, query_block, key_block]
        assert said != Tile.NONE or not tile.any()
        assert said != Tile.ALL or tile.all()


def test_tiles_know_what_is_whole():
    tiles = tiles_of_batch(parse_mask("window:16"), Documents.single(32, 32), 8)
    expected = [[1, 0, 0, 0], [2, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 1]]
    assert tiles[0].tolist() == expected
