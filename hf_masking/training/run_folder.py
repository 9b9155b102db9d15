"""Read and write the folder of a fine-tuning. The module `checkpoints` writes the checkpoints.

run.json            what is trained on what, and how; only the same run can resume
log.jsonl           one line per step, and one per evaluation
checkpoints/        step-000050/ ...: weights, optimizer, schedule, random states
best/               the model with the lowest perplexity, its tokenizer and its mask
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FieldError
from ..files import parse_json_object, written_aside
from .claimed_folder import ClaimedFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelWriter:
    """Save a model in a folder, with its tokenizer.

    max_shard_size: the greatest size of a file, in bytes or as "2GB"; by default that of Transformers.
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
        except (ValueError, OverflowError):  # of "infGB"
            raise FieldError(
                "max_shard_size", f"must be a number of bytes or a size such as '2GB', got {self.max_shard_size!r}"
            ) from None

    def write(self, folder: Path, model: PreTrainedModel, **options: Any) -> None:
        if self.max_shard_size is not None:
            options["max_shard_size"] = self.max_shard_size
        model.save_pretrained(folder, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any error that a library raises on a full disk into an OSError that names the path."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(
            f"{path} could not be written ({reason}); free some space and run it again with --resume"
        ) from error


class RunFolder(ClaimedFolder):
    """The folder of a run. Only the main process writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.log_path = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"

    kind = "fine-tuning"
    # Trackers that write into the folder use "hf-masking".
    parts = ("run.json", "log.jsonl", "checkpoints", "best", "hf-masking")
    growing = ("settings.steps",)

    def is_worth_keeping(self) -> bool:
        """Return whether there is a checkpoint to resume from, or a model."""
        return self.best.exists() or any(self.checkpoints.glob("step-*"))

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the log."""
        with writing(self.log_path), self.log_path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the log before the first damaged line."""
        if not self.log_path.exists():
            return []
        records = []
        for line in self.log_path.read_bytes().splitlines():
            try:
                record = parse_json_object(line)
            except ValueError:
                break
            if not _is_record(record):
                break
            records.append(record)
        return records

    def rewind_log(self, steps: int) -> None:
        """Drop the lines after the checkpoint at ``steps``; raise a ValueError if lines before it are missing."""
        records = self.records()
        kept = [record for record in records if record["step"] <= steps]
        if [record["step"] for record in kept if "loss" in record] != list(range(1, steps + 1)):
            raise ValueError(
                f"{self.log_path} is damaged after line {len(kept)}: a run that continues after step {steps} needs "
                "a line for each step before; restore it, or give another --output to start anew"
            )
        if not steps and (lost := len(records) - len(kept)):
            logger.warning(
                "%s holds no checkpoint; starting again from step 0, without the %d later lines of the log",
                self.checkpoints,
                lost,
            )
        with writing(self.log_path), written_aside(self.log_path) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def save_best(self, save: Callable[[Path], None]) -> None:
        with writing(self.best), written_aside(self.best) as aside:
            aside.mkdir()
            save(aside)

    def check_best(self, step: int) -> None:
        """Raise a ValueError if the best model, saved after ``step``, is missing; 0 means that none was saved."""
        if step and not ((self.best / "config.json").is_file() and any(self.best.glob("*.safetensors"))):
            raise ValueError(
                f"{self.best} is missing, where the best model was saved after step {step}; put it back, or give "
                "another --output to start anew"
            )


def _is_record(line: dict[str, Any]) -> bool:
    """Return whether a line of a log has the figures of a step or of an evaluation."""
    is_complete = "perplexity" in line or {"loss", "tokens_per_second"} <= line.keys()
    numbers = all(isinstance(value, (int, float)) for value in line.values())
    return is_complete and numbers and isinstance(line.get("step"), int)
