"""Keep the finished trials of a comparison in its folder.

run.json      what is compared, and how; only the same comparison can resume
trials/       one file per mask and seed
report.*      rewritten at the end: tables, figures and pictures
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import read_json, written_aside
from ..training.claimed_folder import ClaimedFolder
from .trials import Trial


class ComparisonFolder(ClaimedFolder):
    """A folder of trials, each written as soon as it is finished."""

    kind = "comparison"
    parts = ("run.json", "trials")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.trials = path / "trials"

    def is_worth_keeping(self) -> bool:
        """Return whether a trial has been finished."""
        return any(self.trials.glob("*.json"))

    def find(self, mask: str, seed: int) -> Trial | None:
        """Return a trial that was finished earlier, or None; raise a ValueError if its file is damaged."""
        path = self._path(mask, seed)
        if not path.exists():
            return None
        remedy = "remove it, and --resume measures it again"
        try:
            return _trial(read_json(path, remedy), mask, seed)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{path} holds no finished trial of {mask}, seed {seed} ({error}); {remedy}") from None

    def keep(self, trial: Trial) -> None:
        """Write a trial."""
        with written_aside(self._path(trial.mask, trial.seed)) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(trial)) + "\n")

    def _path(self, mask: str, seed: int) -> Path:
        # A spec cannot be a file name.
        return self.trials / f"{hashlib.sha256(mask.encode()).hexdigest()[:12]}-seed-{seed}.json"


def _trial(held: dict[str, Any], mask: str, seed: int) -> Trial:
    """Return the trial in a file; raise a TypeError or AttributeError if the file holds something else."""
    names = {field.name for field in dataclasses.fields(Trial)}
    if wrong := sorted(held.keys() ^ names):
        raise TypeError(f"missing or unknown: {', '.join(wrong)}")
    for name in names - {"mask", "recovery", "by_position", "error"}:
        if not isinstance(held[name], (int, float, type(None))):
            raise TypeError(f"{name} must be a number, got {held[name]!r}")
    # Keys in JSON are strings.
    recovery = {int(step): float(perplexity) for step, perplexity in held.pop("recovery").items()}
    trial = Trial(**held | {"recovery": recovery, "by_position": tuple(held["by_position"])})
    if (trial.mask, trial.seed) != (mask, seed) or not recovery:
        raise TypeError(f"it is one of {trial.mask}, seed {trial.seed}, with {len(recovery)} evaluations")
    return trial
