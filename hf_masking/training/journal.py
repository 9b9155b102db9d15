"""Keep the log of a run: write its records to the folder, and pass them to trackers and callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from .engine import by_main
from .run_folder import RunFolder

Record = dict[str, Any]


def checked_trackers(trackers: Sequence[str | GeneralTracker]) -> list[str | GeneralTracker] | None:
    """Return the trackers as `Accelerator` takes them; raise a ValueError for unknown or missing ones."""
    known = [name for name in LoggerType.list() if name != LoggerType.ALL.value]
    for tracker in trackers:
        if isinstance(tracker, GeneralTracker):
            continue
        if tracker not in known:
            raise ValueError(f"unknown tracker {tracker!r}; expected one of {', '.join(sorted(known))}")
        if LoggerType(tracker) not in get_available_trackers():
            raise ValueError(f"the tracker {tracker} is not installed; pip install {tracker}")
    return list(trackers) or None


def best_of(evaluations: Mapping[int, float]) -> tuple[int, float]:
    """Return (step, perplexity) of the best evaluation after a step; (0, infinity) before the first."""
    after = [(step, perplexity) for step, perplexity in evaluations.items() if step]
    return min(after, key=lambda item: item[1], default=(0, math.inf))


class Journal:
    """The log of a run, a context manager. Every process keeps the same records; the main one writes them.

    Parameters:
        run_folder: where the records are written, if anywhere.
        on_record: called with every record.
        description: the configuration that trackers get.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run_folder: RunFolder | None,
        on_record: Callable[[Record], None] | None,
        description: Mapping[str, Any],
    ) -> None:
        self.accelerator, self.run_folder, self.on_record = accelerator, run_folder, on_record
        self.description = description
        self.records: list[Record] = []

    def __enter__(self) -> Journal:
        flat = {**self.description, **self.description["settings"]}
        # Some trackers take only numbers and strings.
        config = {name: value if isinstance(value, (int, float)) else str(value) for name, value in flat.items()}
        self.accelerator.init_trackers("hf-masking", config=config)
        return self

    def __exit__(self, *exception: object) -> None:
        # `end_training` would also end the process group.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    @property
    def losses(self) -> list[Record]:
        """Return the records of steps."""
        return [record for record in self.records if "loss" in record]

    @property
    def evaluations(self) -> dict[int, float]:
        """Return the perplexity by step; the entry at 0 is that before training."""
        return {record["step"]: record["perplexity"] for record in self.records if "perplexity" in record}

    def add(self, record: Record) -> None:
        """Keep a record, write it and pass it on."""
        self.records.append(record)
        if self.accelerator.is_main_process:
            if self.run_folder is not None:
                self.run_folder.log(record)
            if self.on_record is not None:
                self.on_record(record)
        figures = {name: value for name, value in record.items() if name != "step"}
        self.accelerator.log(figures, step=record["step"])

    def rewind(self, steps: int) -> None:
        """Drop the records after ``steps``."""
        folder = self.run_folder
        if folder is not None:
            by_main(self.accelerator, lambda: folder.rewind_log(steps))
            self.records = folder.records()
