"""The launcher of the tests that take several processes."""

import re
import time

import psutil
import pytest

from .processes import PYTHON, launch

STUCK = """
import time
print(__import__("os").getpid(), flush=True)
def stuck():
    time.sleep(600)
stuck()
"""
# In a session of its own, as torchrun starts its workers.
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUCK!r}], start_new_session=True)"


def test_what_hangs_is_ended_and_says_where_it_was():
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception) as failure:
        launch("-c", PARENT, launcher=PYTHON, seconds=3)
    text = str(failure.value)
    assert "not done after 3 seconds" in text
    assert re.search(r"line 5 in stuck", text)
    (worker,) = re.findall(r"^(\d+)$", text, flags=re.MULTILINE)
    assert not psutil.pid_exists(int(worker))
    assert time.monotonic() - started < 60


def test_a_failure_comes_with_what_was_written():
    with pytest.raises(AssertionError, match=r"exit code 3: .*\n(.*\n)*said this"):
        launch("-c", "import sys; print('said this', file=sys.stderr); sys.exit(3)", launcher=PYTHON)
