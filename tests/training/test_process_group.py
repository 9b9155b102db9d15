"""How a process leaves its group."""

import pytest

from ..processes import launch


def test_a_process_may_end_right_after_a_collective():
    launch("-m", "tests.training.last_collective", "succeeds")


def test_an_error_is_all_that_is_seen_of_an_error():
    with pytest.raises(AssertionError, match="ValueError: as it should") as failure:
        launch("-m", "tests.training.last_collective", "fails")
    assert "terminate called" not in str(failure.value)
