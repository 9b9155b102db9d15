"""Files and folders that are there whole or not at all: written aside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to; it takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        put_in_place(aside, path)
    finally:
        remove(aside)


def put_in_place(aside: Path, path: Path) -> None:
    """Renames ``aside`` to ``path``. A folder that stands there is moved away first, for rename cannot replace it."""
    if path.is_dir():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        remove(old)
        path.rename(old)
        aside.rename(path)
        remove(old)
    else:
        aside.replace(path)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
