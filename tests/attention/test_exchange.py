"""The bytes that sequence parallelism sends, as the mask predicts them."""

import pytest
import torch

from hf_masking import exchanged_bytes


def test_bytes_of_a_window():
    table = exchanged_bytes("window:256", 32_768, 4, key_heads=8, head_size=128)
    of_key = 8 * 2 * 128 * 2
    assert table.received == (0, 255 * of_key, 255 * of_key, 255 * of_key)
    assert table.sent == (255 * of_key, 255 * of_key, 255 * of_key, 0)
    assert table.all_gather == (3 * 8192 * of_key,) * 4
    assert max(table.received) * 20 <= min(table.all_gather)


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        ("causal", (0, 10, 20, 30)),
        ("window:4|sinks:2", (0, 5, 5, 5)),
        ("strided:5", (0, 10, 20, 30)),
        ("strided:20", (0, 0, 10, 10)),
        ("block_local:10", (0, 0, 0, 0)),
        ("heads[window:2; sinks:1]", (0, 1 + 1, 2, 2)),
        ("prefix|window:2", (0, 1, 1, 1)),
    ],
)
def test_keys_by_rank(spec, keys):
    table = exchanged_bytes(spec, 40, 4, key_heads=1, head_size=1, dtype=torch.float32, rows=3)
    assert table.received == tuple(count * 3 * 2 * 4 for count in keys)
    assert sum(table.sent) == sum(table.received)


def test_adaptive_masks_are_refused():
    with pytest.raises(ValueError, match="is adaptive: which keys it needs depends on hidden states"):
        exchanged_bytes("top_blocks:4,2", 64, 4, key_heads=1, head_size=1)
