"""Declare options: fields of dataclasses, which the command line turns into arguments and flags."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, *flags: str) -> Any:
    """Return a dataclass field that is an option of the command line.

    Parameters:
        default: the default value; ``...`` if the option is required. A list is copied for each instance.
        flags: the flags, where they do not follow from the name of the field.
    """
    return _field(default, {"help": help, "flags": flags})


def argument(default: Any, help: str) -> Any:
    """Return a dataclass field that is a positional argument of the command line; see `option`."""
    return _field(default, {"help": help, "positional": True})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
