"""The entry point of `hf-masking`: what an error looks like, and its exit code.

0    all went well
1    a measurement failed, a check found a fault, or something went wrong that is no mistake of the user's
2    a user's mistake, in one line
130  interrupted by Ctrl-C
141  the reader of a pipe has closed it, so nothing more was written
143  interrupted by SIGTERM
"""

from __future__ import annotations

import os
import sys

TRACEBACK = "HF_MASKING_TRACEBACK"  # set this variable, and errors come with their traceback


def run() -> None:
    """Run the command line; leave with its exit code."""
    try:
        # Not at the top: Ctrl-C while it is imported is no error either.
        from ..streams import prepare_standard_streams

        prepare_standard_streams()
        from .app import call

        code = call()
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        from .failures import explain

        message, code = explain(error)
        _say(f"error: {message}")
    sys.exit(code)


def _say(line: str) -> None:
    """Print a line on standard error; where that takes nothing, the exit code tells."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        # What is left in the buffer is written once more at the exit, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    run()
