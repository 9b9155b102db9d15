"""The entry point of `hf-masking`: what an error looks like, and its exit code.

0    all went well
1    a measurement failed, a check found a fault, or something went wrong that is no mistake of the user's
2    a user's mistake, in one line
130  interrupted by Ctrl-C
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
        from .app import call

        code = call()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        from .failures import explain

        message, code = explain(error)
        sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


if __name__ == "__main__":
    run()
