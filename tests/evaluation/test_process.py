"""Processes of one's own."""

import logging
import os
import signal
import sys

import pytest

from hf_masking.evaluation import in_own_process


def log_and(end):
    logging.getLogger("hf_masking").warning("from %s", "afar")
    if end == "die":
        os._exit(9)
    if end == "fail":
        raise ValueError("failed")
    return end


@pytest.mark.parametrize("end", ["live", "fail", "die"])
def test_what_is_logged_there_is_logged_here(end, caplog, capfd):
    if end == "live":
        assert in_own_process(log_and, end) == end
    else:
        with pytest.raises(Exception, match=r"failed|abruptly"):
            in_own_process(log_and, end)
    assert [record.getMessage() for record in caplog.records if record.name == "hf_masking"] == ["from afar"]
    assert not capfd.readouterr().err


def test_each_process_is_its_own():
    own = signal.getsignal(signal.SIGINT)
    assert in_own_process(os.getpid) != os.getpid()
    # Ctrl-C is for the process that a user has started, even while the other one is starting.
    assert in_own_process(signal.getsignal, signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == own


def write_to_standard_output():
    sys.stdout.write("from a library\n")
    sys.stdout.flush()
    os.write(1, b"from its kernels\n")


def test_standard_output_is_left_to_this_process(capfd):
    in_own_process(write_to_standard_output)
    out, err = capfd.readouterr()
    assert out == "" and err == "from a library\nfrom its kernels\n"
