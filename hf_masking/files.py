"""Write files and folders atomically: to a temporary name beside the target, then rename."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .streams import check_stream, is_stream, written_into

_LEFT_BEHIND = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>partial|old)")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to; it replaces ``path`` when the block ends without an error.

    Symbolic links are followed. A device, a pipe or standard output (``-``) is written into instead.
    """
    if is_stream(path):
        with _named(path), written_into(path) as aside:
            yield aside
        return
    path = Path(os.path.realpath(path))
    check_parent(path)
    aside = aside_of(path, os.getpid())
    try:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            put_in_place(aside, path)
    finally:
        remove(aside)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Make an OSError name the target, not the temporary file or, on a full disk, nothing."""
    try:
        yield
    except BrokenPipeError:  # the reader has closed the pipe, which is not an error here
        raise
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(aside_of(path, os.getpid()))):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def aside_of(path: Path, owner: int) -> Path:
    """Return the temporary name of ``path`` for the process with the number ``owner``."""
    return path.with_name(f".{path.name}.{owner}.partial")


def is_left_behind(path: Path) -> bool:
    """Return whether a path has a temporary name of `written_aside` or `put_in_place`."""
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def recover(folder: Path) -> None:
    """Remove what killed processes have left behind in a folder that only this program writes to.

    A target that was moved away and not yet replaced is put back.
    """
    left = [(path, found) for path in folder.glob(".*") if (found := _LEFT_BEHIND.fullmatch(path.name))]
    for path, found in left:
        if found["kind"] == "old" and not (folder / found["name"]).exists():
            path.rename(folder / found["name"])
        else:
            remove(path)


def check_file(path: Path) -> None:
    """Raises a ValueError if no file can be written there: better now than after an hour."""
    if is_stream(path):
        check_stream(path)
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raises a ValueError if nothing can be put there."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise ValueError(f"{path} cannot be written: it is a symbolic link that leads to itself")
    blocking = next(parent for parent in target.parents if parent.exists())
    if not blocking.is_dir():
        raise ValueError(f"{path} cannot be written: {blocking} is a file, not a folder")
    try:
        # Permissions do not say whether a disk takes anything.
        with tempfile.TemporaryFile(dir=blocking), suppress(FileNotFoundError):
            os.lstat(aside_of(target, os.getpid()))  # too long a name?
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror} ({blocking})") from None


def put_in_place(aside: Path, path: Path) -> None:
    """Renames ``aside`` to ``path``. Only a folder replaces a folder, which is moved away first: rename cannot."""
    if path.is_dir():
        if not aside.is_dir():
            raise ValueError(f"{path} is a folder; name a file")
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        remove(old)
        path.rename(old)
        aside.rename(path)
        remove(old)
    else:
        aside.replace(path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object; a ValueError that names a damaged file and ends in ``remedy``, which says what to do."""
    try:
        return parse_json_object(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from None


def parse_json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that bytes hold; raises ValueError for anything else."""
    try:
        data = json.loads(content)  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
    except RecursionError:
        raise ValueError("its brackets nest too deep") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object to a file or a stream; a number that is not finite, which JSON lacks, becomes null."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    """Return JSON data with null for every number that is not finite."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def digest(folder: Path) -> str:
    """Return the SHA-256 of the files in a folder: their names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        total.update(path.name.encode())
        for piece in _pieces(path):
            total.update(piece)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    total = hashlib.sha256()
    for piece in _pieces(path):
        total.update(piece)
    return total.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
