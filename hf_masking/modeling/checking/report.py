"""The reports of the checks: one row per question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckRow:
    """One question: its name, the verdict, the greatest difference, and what went wrong.

    difference: relative to the standard deviation of the model's outputs.
    """

    name: str
    passed: bool
    difference: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.difference:9.2e}  {self.name} {self.detail}".rstrip()


@dataclass(frozen=True)
class CheckReport:
    """The rows of `check_model` or `check_generation`."""

    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))
