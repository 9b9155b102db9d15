"""Check the values of options; errors name the option."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .command import flag_of


def at_least(minimum: int, **values: int | None) -> None:
    """Raise a ValueError for a value below ``minimum``."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{flag_of(name)} must be at least {minimum}, got {value}")


def at_most(maximum: int, **values: int | None) -> None:
    """Raise a ValueError for a value above ``maximum``."""
    for name, value in values.items():
        if value is not None and value > maximum:
            raise ValueError(f"{flag_of(name)} must be at most {maximum:,}, got {value}")


def utf_8(**values: str | None) -> None:
    """Raise a ValueError for a value with bytes that are not UTF-8."""
    for name, value in values.items():
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{flag_of(name)} is not UTF-8 text (character {error.start}); type it in UTF-8") from None


def refuse_without_effect(options: Any, name: str, why: str) -> None:
    """Raise a ValueError if an option is not at its default, although it has no effect.

    Parameters:
        options: the dataclass that declares the option.
        why: the rest of the sentence, after the name of the option.
    """
    default = next(field.default for field in fields(options) if field.name == name)
    if getattr(options, name) != default:
        raise ValueError(f"{flag_of(name)} {why}")
