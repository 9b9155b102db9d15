"""The folder of a comparison: what it is, and its trials, each written when it is done.

run.json      what is compared, and how; a comparison goes on only as itself
trials/       a file for each mask and seed
report.*      written anew at the end: tables, figures and, beside them, pictures
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from ..files import written_aside
from .comparison import Trial
from .run_folder import ClaimedFolder


class ComparisonFolder(ClaimedFolder):
    """Trials that a kill does not lose."""

    def find(self, mask: str, seed: int) -> Trial | None:
        """A trial that was finished before."""
        path = self._path(mask, seed)
        if not path.exists():
            return None
        held = json.loads(path.read_text())
        # JSON has only strings for keys.
        held["recovery"] = {int(step): perplexity for step, perplexity in held["recovery"].items()}
        held["by_position"] = tuple(held["by_position"])
        return Trial(**held)

    def keep(self, trial: Trial) -> None:
        with written_aside(self._path(trial.mask, trial.seed)) as aside:
            aside.write_text(json.dumps(dataclasses.asdict(trial)) + "\n")

    def _path(self, mask: str, seed: int) -> Path:
        # A spec is no file name.
        return self.path / "trials" / f"{hashlib.sha256(mask.encode()).hexdigest()[:12]}-seed-{seed}.json"
