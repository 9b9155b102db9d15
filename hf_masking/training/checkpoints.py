"""Write and read the checkpoints of a run; verify each one before it is loaded.

A checkpoint's `engine.json` names the engine that wrote it and holds the digest of each of its files. All processes
notice damage by a full disk, a power failure or a copy before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..files import aside_of, check_parent, file_digest, put_in_place, read_json, remove
from .engine import by_main, signature, together
from .run_folder import writing

logger = logging.getLogger(__name__)
_SEAL = "engine.json"
_NAME = re.compile(r"step-(?P<steps>\d{6,})")


class Checkpoints:
    """The checkpoints of a run, each a folder named after the number of steps done.

    keep: how many of the newest checkpoints are kept.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int) -> None:
        self.accelerator, self.folder, self.keep = accelerator, folder, keep

    def path(self, steps: int) -> Path:
        return self.folder / f"step-{steps:06d}"

    def save(self, steps: int) -> None:
        """Write the state of all processes; the checkpoint appears when it is complete."""
        aside = aside_of(self.path(steps), owner=0)  # the same for all processes
        try:
            together(self.accelerator, lambda: self._write(aside, steps))
            files = self._digests(aside)
            by_main(self.accelerator, lambda: self._finish(aside, steps, files))
        except BaseException:
            if self.accelerator.is_main_process:
                remove(aside)
            raise

    def load(self) -> int:
        """Load the newest intact checkpoint and return its number of steps; 0 if there is none.

        Raises:
            ValueError: all of them are damaged, or another engine wrote the newest intact one.
        """
        by_main(self.accelerator, lambda: check_parent(self.path(0)))
        by_main(self.accelerator, self._tell_of_others)
        damaged: dict[Path, str] = {}
        for steps in reversed(by_main(self.accelerator, self._found)):
            checkpoint = self.path(steps)
            damage = self._damage(checkpoint)
            if damage is not None:
                damaged[checkpoint] = damage
                continue
            if self.accelerator.is_main_process:
                for path, reason in damaged.items():
                    logger.warning(
                        "the checkpoint %s is damaged (%s); continuing from %s", path, reason, checkpoint.name
                    )
            self.accelerator.load_state(str(checkpoint))
            return steps
        if damaged:
            path, reason = next(iter(damaged.items()))
            raise ValueError(
                f"no checkpoint in {self.folder} can be read: {path.name} is damaged ({reason}); restore one, or give "
                "another --output to start anew"
            )
        return 0

    def _write(self, aside: Path, steps: int) -> None:
        with writing(self.path(steps)):
            self.accelerator.save_state(str(aside))

    def _finish(self, aside: Path, steps: int, files: dict[str, str]) -> None:
        with writing(self.path(steps)):
            (aside / _SEAL).write_text(json.dumps(signature(self.accelerator) | {"files": files}) + "\n")
            put_in_place(aside, self.path(steps))
        # Later ones exist only if they were too damaged to resume from.
        for old in [held for held in self._found() if held <= steps][: -self.keep]:
            remove(self.path(old))

    def _found(self) -> list[int]:
        """Return the numbers of steps of the checkpoints, in order."""
        names = [_NAME.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return sorted(int(name["steps"]) for name in names if name)

    def _tell_of_others(self) -> None:
        for path in sorted(self.folder.glob("step-*")):
            if not _NAME.fullmatch(path.name):
                logger.warning("%s is not a checkpoint of this run and is left alone", path)

    def _damage(self, checkpoint: Path) -> str | None:
        """Return the damage of a checkpoint or None, alike in all processes; refuse one of another engine."""
        try:
            seal = by_main(self.accelerator, lambda: _read_seal(checkpoint))
        except (ValueError, OSError) as error:
            return str(error)
        files = seal.pop("files")
        if seal != signature(self.accelerator):
            raise ValueError(
                f"{checkpoint} was written by {_name_of(seal)}, and cannot be read by "
                f"{_name_of(signature(self.accelerator))}; launch as before, or start anew in another --output"
            )
        differing = together(self.accelerator, lambda: self._differing(checkpoint, files))
        wrong = sorted(name for names in differing for name in names)
        return f"{wrong[0]} is not what was written" if wrong else None

    def _differing(self, checkpoint: Path, files: dict[str, str]) -> list[str]:
        """Return the files that have changed, of those that this process verifies."""
        return [name for name in self._share(files) if _digest_or_none(checkpoint / name) != files[name]]

    def _digests(self, folder: Path) -> dict[str, str]:
        """Return the digest of each file; every process computes some of them."""
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        found = together(self.accelerator, lambda: {name: file_digest(folder / name) for name in self._share(names)})
        return {name: digest for some in found for name, digest in some.items()}

    def _share(self, names: Any) -> list[str]:
        return sorted(names)[self.accelerator.process_index :: self.accelerator.num_processes]


def _read_seal(checkpoint: Path) -> dict[str, Any]:
    seal = read_json(checkpoint / _SEAL, "remove the checkpoint")
    if not (isinstance(seal.get("engine"), str) and isinstance(seal.get("files"), dict)):
        raise ValueError(f"{checkpoint / _SEAL} does not say which engine wrote which files")
    return seal


def _digest_or_none(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def _name_of(seal: dict[str, Any]) -> str:
    processes = seal.get("processes")
    return seal["engine"] + (f" in {processes} processes" if processes else "")
