"""The folder of a fine-tuning: what it is, its log, its best model. `checkpoints` writes those.

run.json            what is trained on what, and how; a run resumes only as itself
log.jsonl           a line a step, and a line an evaluation
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

from ..files import parse_json_object, written_aside
from .claimed_folder import ClaimedFolder

logger = logging.getLogger(__name__)


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
        except (ValueError, OverflowError):  # of "infGB"
            raise ValueError(
                f"max_shard_size must be a number of bytes or a size such as '2GB', got {self.max_shard_size!r}"
            ) from None

    def write(self, folder: Path, model: PreTrainedModel, **options: Any) -> None:
        if self.max_shard_size is not None:
            options["max_shard_size"] = self.max_shard_size
        model.save_pretrained(folder, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever a full disk makes a library raise into an OSError that names what was to be written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(
            f"{path} could not be written ({reason}); free some space and run it again with --resume"
        ) from error


class RunFolder(ClaimedFolder):
    """All reading and writing in the folder of a run. Only the main process writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.log_path = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"

    # "hf-masking" is what trackers that write into the folder call theirs.
    parts = ("run.json", "log.jsonl", "checkpoints", "best", "hf-masking")

    def is_worth_keeping(self) -> bool:
        """Whether there is a checkpoint to go on from, or a model."""
        return self.best.exists() or any(self.checkpoints.glob("step-*"))

    def log(self, record: dict[str, Any]) -> None:
        with writing(self.log_path), self.log_path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The lines of the log before the first one that a kill has cut, or that is damaged otherwise."""
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
        """Forget what was logged after the checkpoint at ``steps``; a ValueError if lines are missing before it."""
        records = self.records()
        kept = [record for record in records if record["step"] <= steps]
        if [record["step"] for record in kept if "loss" in record] != list(range(1, steps + 1)):
            raise ValueError(
                f"{self.log_path} is damaged after line {len(kept)}: a run that goes on after step {steps} needs a "
                "line for each step before; restore it, or give another --output to start anew"
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
        """Raise a ValueError if the best model is gone, which the log says was saved after a step; 0 for none."""
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
