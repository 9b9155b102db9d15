"""Run `hf-masking`, print errors on one line, and exit with a code.

0    success
1    a measurement failed, a check found a fault, or an unexpected error
2    a mistake in the command line or its input
130  interrupted by Ctrl-C
141  the reader of a pipe closed it
143  interrupted by SIGTERM
"""

from __future__ import annotations

import os
import sys


def run() -> None:
    """Run the command line and exit with its code."""
    try:
        # Not at the top: Ctrl-C during the import must not print a traceback.
        from ..streams import prepare_standard_streams

        prepare_standard_streams()
        from .app import call

        code = call()
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        from .failures import TRACEBACK, explain

        if os.environ.get(TRACEBACK):
            raise

        message, code = explain(error)
        _say(f"error: {message}")
    sys.exit(code)


def _say(line: str) -> None:
    """Print a line on standard error; if that fails, the exit code still tells."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        # Python flushes the buffer again at exit, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    run()
