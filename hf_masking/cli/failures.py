"""Explain an exception that ends a command: the line to print, and the exit code."""

from __future__ import annotations

import re
from typing import Any

import typer

from ..errors import FailedCheckError

TRACEBACK = "HF_MASKING_TRACEBACK"  # set this variable to see the traceback of an error

_LONGEST = 1000  # characters of a line

# Click's error for a command line that does not parse. Typer exports only this subclass of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def explain(error: Exception) -> tuple[str, int]:
    """Return the line to print for an exception, and the exit code."""
    if isinstance(error, UsageError):
        return _usage(error), 2
    if out_of_memory(error):
        asked = re.search(r"allocate (\d+) bytes", str(error))
        how_much = f"{int(asked[1]) / 2**30:,.1f} GiB at once" if asked else _first_line(str(error))
        return f"not enough memory ({how_much}); use something smaller", 2
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return _one_line(f"{where}{error.strerror}"), 2
    if isinstance(error, FailedCheckError):
        reason, *rows = error.args
        more = f": {rows[0]}; see all with hf-masking check" if rows else "; give another model"
        return _one_line(f"{reason}{more}"), 2
    if type(error).__module__.startswith("hf_masking."):
        # Our own errors keep their lines: a spec has a caret under it.
        return "\n".join(map(_one_line, str(error).splitlines())), 2
    if isinstance(error, (ValueError, OSError)):
        return _one_line(str(error) or type(error).__name__), 2
    return f"{reason_of(error)} (not expected; {TRACEBACK}=1 shows where, for a report)", 1


def reason_of(error: Exception) -> str:
    """Return an exception as one line."""
    if isinstance(error, ValueError):
        return _first_line(str(error))
    return f"{type(error).__name__}: {_first_line(str(error))}"


def out_of_memory(error: Exception) -> bool:
    """Return whether there was not enough memory, on the host or on a device."""
    # torch's own class derives from RuntimeError, and its allocator on the CPU raises that itself.
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _usage(error: Any) -> str:
    message = _first_line(error.format_message()).rstrip(".")
    return message if error.ctx is None else f"{message} ({error.ctx.command_path} --help)"


def _first_line(text: str) -> str:
    return _one_line(next((line.strip() for line in text.splitlines() if line.strip()), "nothing more is known"))


def _one_line(text: str) -> str:
    """Return a text of limited length without control characters, which names of files may have."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
