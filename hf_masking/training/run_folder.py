"""The folder of a fine-tuning: what it is, its log, its checkpoints, its best model.

run.json            what is trained on what, and how; a run resumes only as itself
log.jsonl           a line a step, and a line an evaluation
checkpoints/        step-000050/ ...: weights, optimizer, schedule, random states
best/               the model with the lowest perplexity, its tokenizer and its mask
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import check_parent, put_in_place, remove, written_aside

LOCK = ".lock"


@dataclass(frozen=True)
class ModelWriter:
    """How a model is put into a folder, with its tokenizer.

    max_shard_size: in files of at most so many bytes, or "2GB"; by default Transformers' size.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    max_shard_size: str | int | None = None

    def __post_init__(self) -> None:
        if self.max_shard_size is None:
            return
        try:
            if str(self.max_shard_size).strip().startswith(("-", "0")):
                raise ValueError
            split_torch_state_dict_into_shards({}, max_shard_size=self.max_shard_size)
        except ValueError:
            raise ValueError(
                f"max_shard_size must be a number of bytes or a size such as '2GB', got {self.max_shard_size!r}"
            ) from None

    def write(self, folder: Path, model: PreTrainedModel, **options: Any) -> None:
        if self.max_shard_size is not None:
            options["max_shard_size"] = self.max_shard_size
        model.save_pretrained(folder, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


class ClaimedFolder:
    """A folder for one undertaking, which its run.json describes; only the same one may go on in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, description: dict[str, Any], resume: bool) -> None:
        """Checks that the folder is free, or holds this very run and is to be resumed; raises ValueError if not."""
        description_path = self.path / "run.json"
        if not description_path.exists():
            if self.path.is_file() or (self.path.is_dir() and any(file.name != LOCK for file in self.path.iterdir())):
                raise ValueError(f"{self.path} is not an empty folder and holds no run; give another --output")
            check_parent(self.path)
            return
        if not resume:
            raise ValueError(
                f"{self.path} holds another run; give --resume to go on with it, or another --output to start anew"
            )
        held = _flat(json.loads(description_path.read_text()))
        wanted = _flat(json.loads(json.dumps(description)))
        different = sorted(key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key))
        if different:
            key = different[0]
            raise ValueError(
                f"{self.path} holds a run with {key} = {held.get(key)!r}, and it cannot be resumed with "
                f"{wanted.get(key)!r}; give the same {', '.join(different)}, or another --output"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else works in the folder meanwhile; a ValueError if somebody does."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is at work in {self.path}; wait for it, or give another --output"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it itself, when it is released
                (self.path / LOCK).unlink()
            lock.release()
            with suppress(OSError):  # unless nothing has been written
                self.path.rmdir()

    def describe(self, description: dict[str, Any]) -> None:
        with written_aside(self.path / "run.json") as aside:
            aside.write_text(json.dumps(description, indent=2) + "\n")


def _flat(description: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Without levels, so that what differs can be named: settings.learning_rate."""
    flat: dict[str, Any] = {}
    for key, value in description.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{before}{key}.") if nested else {f"{before}{key}": value}
    return flat


class RunFolder(ClaimedFolder):
    """All reading and writing in the folder of a run. Only the main process writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.log_path = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"

    def log(self, record: dict[str, Any]) -> None:
        with self.log_path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The log; a last line that a kill has cut is left out."""
        if not self.log_path.exists():
            return []
        records = []
        for line in self.log_path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def rewind_log(self, steps: int) -> None:
        """Forgets what was logged after the checkpoint at ``steps``."""
        kept = [record for record in self.records() if record["step"] <= steps]
        with written_aside(self.log_path) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def checkpoint(self, steps: int) -> Path:
        return self.checkpoints / f"step-{steps:06d}"

    def latest_steps(self) -> int:
        """After how many steps the newest whole checkpoint was written; 0 if there is none."""
        found = [int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*")]
        return max(found, default=0)

    def partial_checkpoint(self, steps: int) -> Path:
        """Where all processes write a checkpoint before it counts."""
        return self.checkpoints / f".step-{steps:06d}.partial"

    def finish_checkpoint(self, steps: int, keep: int) -> None:
        put_in_place(self.partial_checkpoint(steps), self.checkpoint(steps))
        for old in sorted(self.checkpoints.glob("step-*"))[:-keep]:
            remove(old)

    def save_best(self, save: Callable[[Path], None]) -> None:
        with written_aside(self.best) as aside:
            aside.mkdir()
            save(aside)
