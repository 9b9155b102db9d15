"""Declare options: fields of dataclasses that the command line turns into flags."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, *flags: str) -> Any:
    """Return a dataclass field with a default and a help text.

    Parameters:
        default: the default value; a list is copied for each instance.
        flags: names of the option, where they differ from the field's.
    """
    metadata = {"help": help, "flags": flags}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """Return the flag of a field: `batch_size` is `--batch-size`."""
    return f"--{name.replace('_', '-')}"
