"""Outputs that are not files: standard output, pipes and devices. They are written into, never replaced."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_DESCRIPTORS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_NUMBERED = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def prepare_standard_streams() -> None:
    """Open the null device for each closed standard stream; without it, the next opened file would take its number.

    Raises:
        ValueError: standard output is closed, so what is printed would be lost.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if not os.environ.get("COLUMNS", "").strip("0"):  # Rich prints nothing on a terminal of width 0
        os.environ.pop("COLUMNS", None)
    if "stdout" in closed:
        raise ValueError("standard output is closed; give it a file or a pipe, or discard it with >/dev/null")


def is_stream(path: Path) -> bool:
    """Return whether ``path`` names standard output, another open descriptor, a pipe, a device or a socket."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def is_stdout(path: Path) -> bool:
    """Return whether ``path`` names standard output: `-` does."""
    return _descriptor(path) == 1


def check_stream(path: Path) -> None:
    """Raise a ValueError for a stream that cannot be written into."""
    descriptor = _descriptor(path)
    try:
        if descriptor is not None:
            os.fstat(descriptor)
        elif stat.S_ISSOCK(path.stat().st_mode):
            raise ValueError(f"{path} is a socket; name a file or a pipe")
        elif not os.access(path, os.W_OK):
            raise PermissionError(0, "no permission")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def written_into(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; its bytes go into the stream ``path`` when the block ends without an error."""
    with tempfile.TemporaryDirectory() as scratch:
        aside = Path(scratch) / "output"
        yield aside
        with aside.open("rb") as source, _opened(path) as sink:
            shutil.copyfileobj(source, sink)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a stream, or use it if it is open: opening it again would truncate the file that it writes to."""
    descriptor = _descriptor(path)
    if descriptor in (1, 2):
        stream = sys.stdout if descriptor == 1 else sys.stderr
        stream.flush()
        yield stream.buffer
        stream.flush()
    else:
        # Never create a device, and never truncate a file behind a descriptor.
        target = path if descriptor is None else os.dup(descriptor)
        with open(target, "wb", opener=lambda name, _: os.open(name, os.O_WRONLY)) as file:
            yield file


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path names, or None."""
    named = _NUMBERED.fullmatch(str(path))
    return int(named[1]) if named else _DESCRIPTORS.get(str(path))
