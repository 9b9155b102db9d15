"""The benchmark of attention: what it counts, and that it measures what it says."""

from hf_masking.evaluation.benchmark import (
    DENSE_MASK,
    IS_CAUSAL,
    Contender,
    Row,
    Shape,
    contenders_for,
    measure,
    measure_memory,
)

SHAPE = Shape(length=300, heads=2, key_heads=1, head_size=8)


def test_every_contender_is_measured_in_every_round():
    contenders = list(
        contenders_for(["window:16", "heads[causal; sinks:2]"], SHAPE, dense=True, causal=True, flex=False)
    )
    assert [contender.backend for contender in contenders[:3]] == [IS_CAUSAL, DENSE_MASK, "auto"]
    rows = measure(SHAPE, contenders, rounds=2)
    assert len({len(row.both_seconds) for row in rows}) == 1
    for row in rows:
        assert row.error is None and len(row.forward_seconds) == len(row.both_seconds) > 0
        # Not the medians of two rounds: another process may take the core in one of them.
        assert 0 < min(row.forward_seconds) < max(row.both_seconds)
        assert 0 < row.both_share < 1
        assert row.document()["both"] == vars(row.both) and row.both.disturbed, "two rounds have no spread"
    planned = [row for row in rows if row.touched_pairs is not None]
    assert {row.backend for row in planned} == {"blockwise"}
    assert all(row.allowed_pairs <= row.touched_pairs for row in planned)
    assert rows[2].allowed_pairs == 16 * 300 - 16 * 15 // 2


def test_a_contender_that_fails_leaves_the_others_alone():
    contenders = [Contender("window:16", "flex"), Contender("window:16", "blockwise")]
    failed, measured = measure(SHAPE, contenders, rounds=1)
    assert "head sizes must be at least 16" in failed.error and measured.both is not None
    assert failed.document()["forward"] is None


def test_memory_is_that_of_a_process_of_its_own():
    shape = Shape(length=3000, heads=2, key_heads=2, head_size=16)
    rows = {}
    for backend in ("blockwise", "reference"):
        rows[backend] = Row(3000, "window:16", backend, 0)
        measure_memory(shape, Contender("window:16", backend), rows[backend])
    assert rows["blockwise"].inputs_bytes == 2 * 4 * 2 * 3000 * 16 * 4
    # The reference keeps all pairs of both heads several times over, in float32.
    assert rows["reference"].extra_bytes > 2 * 3000**2 * 4 > 4 * rows["blockwise"].extra_bytes
