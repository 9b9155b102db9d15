"""Two processes do alike: stop, resume, fall back, refuse."""

import json

import pytest

from ..processes import launch
from .in_two import run


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return what each process has found."""
    folder = tmp_path_factory.mktemp("two")
    launch("-m", "tests.training.in_two", folder)
    return [json.loads((folder / f"found-{process}.json").read_text()) for process in range(2)]


def test_losses_do_not_depend_on_the_number_of_processes_without_dropout(both, tmp_path):
    main, other = both
    assert main["plain"] == other["plain"] == pytest.approx(run(tmp_path / "one").losses, abs=1e-5)
    assert main["said of plain"] == other["said of plain"] == []


def test_two_processes_that_share_contexts_train_alike_and_resume_exactly(both):
    main, other = both
    assert main["shards without dropout"] == other["shards without dropout"]
    assert main["shards without dropout"] == pytest.approx(main["plain"], abs=1e-5)
    for found in both:
        assert found["shards resumed"] == found["shards"] == main["shards"]


def test_with_dropout_they_do_and_that_is_logged(both, tmp_path, caplog):
    one = run(tmp_path / "one", dropout=True).losses
    assert not any("dropout" in said for said in caplog.messages)
    main, other = both
    assert main["dropout"] == other["dropout"] != pytest.approx(one, abs=1e-4)
    (said,) = main["said of dropout"]
    assert "the losses are those of 2 processes" in said
    assert other["said of dropout"] == []


def test_a_signal_to_one_process_stops_both_at_the_same_step(both):
    for found in both:
        assert found["stopped"] == ["stopped after step 1 of 4, with a checkpoint", 143]
        assert found["resumed"] == found["dropout"]


def test_a_damaged_checkpoint_is_left_by_both(both):
    main, other = both
    assert main["fallen back"] == other["fallen back"] == main["dropout"]
    assert any(
        "step-000003 is damaged (optimizer.bin is not what was written)" in said for said in main["said of damage"]
    )
    assert not any("damaged" in said for said in other["said of damage"])


def test_what_the_main_process_refuses_ends_the_other_one_too(both):
    for found in both:
        assert "holds another run; give --resume" in found["refused"]
