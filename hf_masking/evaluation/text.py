"""Load texts from files, folders, the hub, or the standard library of the running Python."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import FieldError

STDLIB = "stdlib"
STDIN = "-"
_ENCODING = "utf-8-sig"  # UTF-8, without the byte order mark that some editors put before it
_REMEDY = "give a text file, a folder, a hub data set or 'stdlib'"
_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".json", ".jsonl", ".csv", ".c", ".h", ".cpp", ".js"}
# Parts of the standard library that are not its source, or exist only in some installations.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """A text and its source."""

    source: str
    content: str

    @property
    def sha256(self) -> str:
        """Return the digest of the text."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def split(self, held_out: float) -> tuple[Text, Text]:
        """Return the text without its last part, and that part, split at the end of a line."""
        place = int(len(self.content) * (1 - held_out))
        place = self.content.find("\n", place) + 1 or place
        return Text(self.source, self.content[:place]), Text(self.source, self.content[place:])


@dataclass(frozen=True)
class TextStream:
    """A text that is read while it is used: the consecutive rows of a data set.

    rows: an ``IterableDataset`` of `datasets`.
    """

    source: str
    rows: Any
    column: str

    def tokens(self, tokenizer: PreTrainedTokenizerBase, skip: int) -> Iterator[list[int]]:
        """Yield the token ids of each row and its line break, after skipping ``skip`` rows."""
        try:
            for batch in self.rows.skip(skip).iter(batch_size=256):
                if self.column not in batch:
                    raise ValueError(f"{self.source} has no column {self.column!r}; its columns are {', '.join(batch)}")
                lines = [f"{text}\n" for text in batch[self.column]]
                yield from tokenize(tokenizer, lines, add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.source} is not UTF-8 text ({error}); convert it or name another one") from None


def load_stream(source: str, *, split: str = "test", column: str = "text") -> TextStream:
    """Open a source as a stream: rows of a hub data set, or lines of files.

    Raises:
        ValueError: there is no such source, it cannot be reached, or it cannot be streamed.
    """
    import datasets

    if source == STDLIB:
        raise ValueError(f"{STDLIB} is read as a whole; leave --stream out, or name a file, a folder or a hub data set")
    path = _path(source)
    if source == STDIN or (path.exists() and not path.is_dir() and not path.is_file()):
        raise ValueError(f"{source} can be read only once, and a stream is read again in each pass; leave --stream out")
    if path.exists():
        files = [str(file) for file in (_files(path) if path.is_dir() else [path])]
        how = {"data_files": files, "encoding": _ENCODING, "split": "train", "streaming": True}
        return TextStream(source, datasets.load_dataset("text", **how), "text")
    _refuse_missing(source)
    return TextStream(source, _hub(source, split, streaming=True), column)


def load_text(source: str, *, split: str = "test", column: str = "text") -> Text:
    """Load the text of a source.

    Parameters:
        source: a UTF-8 file or a pipe; ``-``, standard input; a folder, whose text files are joined in the order of
            their names; ``stdlib``, the source of the Python standard library that is running; or a data set of the
            hub, ``name`` or ``name:config``.
        split: the split of a hub data set.
        column: its column that holds the text.

    Raises:
        ValueError: there is no such source, it cannot be reached, or it is not text.
    """
    if source == STDLIB:
        return Text(source, _standard_library())
    path = _path(source)
    if source == STDIN:
        return Text("standard input", _decoded(sys.stdin.buffer.read(), "standard input"))
    if path.is_dir():
        return Text(source, _folder(path))
    if path.exists():
        return Text(source, _read(path))
    _refuse_missing(source)
    rows = _hub(source, split)
    if column not in rows.column_names:
        raise ValueError(f"{source} has no column {column!r}; its columns are {', '.join(rows.column_names)}")
    return Text(source, "\n".join(rows[column]))


def encode(text: Text, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None) -> tuple[Tensor, int | None]:
    """Return token ids ``[N]`` without special tokens, and the bytes of their text (None if that is not known).

    Parameters:
        max_tokens: keep only so many tokens from the beginning.

    Raises:
        ValueError: ``max_tokens`` is not positive.
    """
    if max_tokens is not None and max_tokens < 1:
        raise FieldError("max_tokens", f"must be at least 1, got {max_tokens}")
    if max_tokens is None:
        ids = _with_offsets(tokenizer, text.content)["input_ids"]
        return torch.tensor(ids, dtype=torch.long), len(text.content.encode())
    # Encode only as much text as needed; a token that the cut splits is among those that are dropped.
    characters = 4 * max_tokens
    while True:
        encoded = _with_offsets(tokenizer, text.content[:characters])
        if len(encoded["input_ids"]) > max_tokens or characters >= len(text.content):
            break
        characters *= 2
    ids = encoded["input_ids"][:max_tokens]
    known = tokenizer.is_fast and bool(ids)
    covered = text.content[: encoded["offset_mapping"][len(ids) - 1][1]] if known else None
    return torch.tensor(ids, dtype=torch.long), None if covered is None else len(covered.encode())


def _with_offsets(tokenizer: PreTrainedTokenizerBase, content: str) -> Any:
    offsets = tokenizer.is_fast
    return tokenize(tokenizer, content, add_special_tokens=False, verbose=False, return_offsets_mapping=offsets)


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str | list[str], **options: Any) -> Any:
    """Call a tokenizer; raises ValueError, which names it, where it is damaged and cannot encode the text."""
    try:
        return tokenizer(text, **options)
    except Exception as error:  # whatever its library raises
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} cannot encode the text ({type(error).__name__}: {reason}); "
            "repair its tokenizer.json or tokenizer_config.json, or give another model"
        ) from None


def is_data_set(source: str) -> bool:
    """Return whether the name of a text can only be that of a data set of the hub."""
    return source not in (STDLIB, STDIN) and not _path(source).exists()


def _path(source: str) -> Path:
    """Return the path that the name of a text may stand for; raises ValueError for a name that stands for nothing."""
    if not source:
        raise ValueError(f"the name of the text is empty; {_REMEDY}")
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise ValueError(f"no such user: {source}; {_REMEDY}") from None


def _refuse_missing(source: str) -> None:
    path = Path(source)
    if path.suffix in _SUFFIXES or path.is_symlink() or source.startswith((".", "/", "~")):
        raise ValueError(f"no such file or folder: {source}; {_REMEDY}")


def _read(path: Path) -> str:
    mode = path.stat().st_mode
    # A terminal ends when its user ends it; other devices, such as /dev/zero, may never end.
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and not _is_terminal(path)):
        raise ValueError(f"{path} is a device; name a text file or a pipe")
    try:
        content = path.read_bytes()
    except OSError as error:  # one of reading, and not of opening, names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    return _decoded(content, str(path))


def _is_terminal(path: Path) -> bool:
    return os.path.realpath(path).startswith(("/dev/tty", "/dev/pts/"))


def _decoded(content: bytes, name: str) -> str:
    try:
        text = content.decode(_ENCODING)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start}); convert it or name another file") from None
    if not text.strip():
        raise ValueError(f"{name} is empty; name a file with text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _folder(path: Path) -> str:
    return "\n".join(file.read_text(encoding=_ENCODING, errors="replace") for file in _files(path))


def _files(path: Path) -> list[Path]:
    files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"no text files in {path}; expected files that end in {', '.join(sorted(_SUFFIXES))}")
    return files


def _standard_library() -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in library_files())


def library_files() -> list[Path]:
    """Return the source files of the Python standard library that is running, in a fixed order.

    Raises:
        ValueError: this Python has none.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in root.rglob("*.py") if not _NOT_LIBRARY & set(file.relative_to(root).parts)]
    if not files:
        raise ValueError(f"this Python has no library source in {root}; name a text file with --data")
    # A fixed shuffle: files with similar names are alike, and the end of the text is held out.
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    return files


def _hub(source: str, split: str, **how: Any) -> Any:
    import datasets

    name, _, config = source.partition(":")
    if not name:
        raise ValueError(f"{source!r} names no data set before the colon; give NAME or NAME:CONFIG")
    try:
        return datasets.load_dataset(name, config or None, split=split, **how)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source!r} is no file or folder here, and cannot be loaded from the hub ({reason}); "
            "name a text file, a folder, or 'stdlib', which needs no network"
        ) from None
