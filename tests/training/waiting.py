"""A program that waits for a process of its own, for `test_interrupted.py`."""

import os
import sys
import time
from pathlib import Path

from hf_masking.evaluation import in_own_process
from hf_masking.interrupts import Interrupted, raised


def wait(note):
    Path(note).write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    try:
        with raised():
            in_own_process(wait, sys.argv[1])
    except KeyboardInterrupt as stop:
        sys.exit(stop.exit_code if isinstance(stop, Interrupted) else 130)
