"""Claim a folder for one job, which its run.json describes; only the same job may resume in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..errors import FieldError
from ..files import check_parent, is_left_behind, read_json, recover, remove, written_aside

LOCK = ".lock"
_KIND = "kind"  # the entry of run.json that says what the folder is for
_REMEDY = "restore it, or give another --output to start anew"  # for a damaged run.json
_STARTED = "started"  # the entry of run.json that a resumed run need not share


class ClaimedFolder:
    """A folder that holds one job, and nothing else.

    kind: what the folder is for, as messages call it.
    parts: the files and folders that the job writes.
    growing: entries of the description that may be greater when the job resumes, such as settings.steps.
    """

    kind: str
    parts: tuple[str, ...] = ("run.json",)
    growing: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description_path = path / "run.json"

    @contextmanager
    def claimed(self, description: dict[str, Any], resume: bool) -> Iterator[None]:
        """Hold the folder for a job. A job that fails with nothing worth keeping leaves the folder as it was.

        Parameters:
            description: what identifies the job; plain JSON.
            resume: continue a job that is in the folder.

        Raises:
            ValueError: the folder holds something else, or another process works in it.
        """
        self._check(description, resume)
        with self._alone():
            # Again, under the lock: another process may have come and gone since.
            self._check(description, resume)
            is_new = not self.description_path.exists()
            for folder in self.path, *(self.path / part for part in self.parts):
                recover(folder)
            try:
                yield
            except BaseException:
                if is_new and not self.is_worth_keeping():
                    with suppress(OSError):  # the first error is the one to report
                        for part in self.parts:
                            remove(self.path / part)
                raise

    def is_worth_keeping(self) -> bool:
        """Return whether a resumed job would find something done."""
        raise NotImplementedError

    def describe(self, description: dict[str, Any]) -> None:
        """Write run.json, unless it says the same already; entries that have grown are updated."""
        if self.description_path.exists():
            if self._held() == json.loads(json.dumps(description)):
                return
            started = read_json(self.description_path, _REMEDY).get(_STARTED)
        else:
            started = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "versions": _versions()}
        with written_aside(self.description_path) as aside:
            aside.write_text(json.dumps({_KIND: self.kind, **description, _STARTED: started}, indent=2) + "\n")

    def check_place(self, resume: bool) -> None:
        """Raise a ValueError unless the folder is free, or holds a job and ``resume`` is given."""
        if not self.description_path.exists():
            if self.path.is_file() or (self.path.is_dir() and any(map(_is_of_others, self.path.iterdir()))):
                raise ValueError(f"{self.path} is not an empty folder and holds no run; give another --output")
            check_parent(self.path)
            return
        self._held()
        if not resume:
            raise ValueError(
                f"{self.path} holds another run; give --resume to continue it, or another --output to start anew"
            )

    def _check(self, description: dict[str, Any], resume: bool) -> None:
        """Raise a ValueError unless the folder is free, or holds the same job and ``resume`` is given."""
        self.check_place(resume)
        if not self.description_path.exists():
            return
        held, wanted = _flat(self._held()), _flat(json.loads(json.dumps(description)))
        different = sorted(key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key))
        different = [key for key in different if not (key in self.growing and held.get(key, 0) < wanted.get(key, 0))]
        if different:
            key = different[0]
            raise FieldError(
                list(dict.fromkeys(map(_field, different))),
                f"must be as in the run in {self.path}, where {key} is {held.get(key)!r}, got {wanted.get(key)!r}; "
                "give the same, or another --output",
            )

    def _held(self) -> dict[str, Any]:
        """Read what run.json describes; raise a ValueError if it is damaged or of another kind."""
        held = read_json(self.description_path, _REMEDY)
        held.pop(_STARTED, None)
        kind = held.pop(_KIND, None)
        if not isinstance(kind, str):
            raise ValueError(f"{self.description_path} does not say what kind of run it describes; {_REMEDY}")
        if kind != self.kind:
            raise ValueError(f"{self.path} holds a {kind}, and this is a {self.kind}; give another --output")
        return held

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder; raise a ValueError if another process has locked it."""
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._locked():
                yield
        finally:
            for folder in made:
                with suppress(OSError):  # unless it holds something
                    folder.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another process works in {self.path}; wait for it, or use another folder") from None
        try:
            yield
        finally:
            with suppress(OSError):  # on Windows releasing the lock removes the file
                (self.path / LOCK).unlink()
            lock.release()


def _is_of_others(path: Path) -> bool:
    return path.name != LOCK and not is_left_behind(path)


def _versions() -> dict[str, str]:
    """Return the versions that a job started with."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"hf-masking": __version__, "python": platform.python_version(), **packages}


def _field(key: str) -> str:
    """Return the field that sets a key of run.json: batch_size for settings.batch_size, layer for layers.0."""
    first, _, rest = key.partition(".")
    if first in ("settings", "options"):
        return rest
    return "layer" if first == "layers" else first


def _flat(description: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return a description without nesting, so that an error can name the key: settings.learning_rate."""
    flat: dict[str, Any] = {}
    for key, value in description.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat
