"""Define the exceptions that users can catch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class UnsupportedModelError(ValueError):
    """The model cannot be patched: its attention does not go where a mask would reach it, or the checks failed."""


class FailedCheckError(UnsupportedModelError):
    """The checks of a patched model fail, or cannot run; ``check=False`` leaves them out.

    Parameters:
        reason: what is wrong, without the advice that the message ends in.
        rows: the checks that fail.
    """

    def __init__(self, reason: str, *rows: str) -> None:
        super().__init__(reason, *rows)

    def __str__(self) -> str:
        reason, *rows = self.args
        if not rows:
            return f"{reason}; patch with check=False"
        return "\n".join([f"{reason} (check=False patches it all the same):", *rows])


class FieldError(ValueError):
    """Fields of settings, or parameters, have wrong values; the command line names the options that set them.

    Parameters:
        names: a field, or several.
        predicate: the rest of the sentence, such as "must be at least 1, got 0".
    """

    def __init__(self, names: str | Sequence[str], predicate: str) -> None:
        super().__init__((names,) if isinstance(names, str) else tuple(names), predicate)

    def __str__(self) -> str:
        return self.sentence({})

    def sentence(self, titles: Mapping[str, str]) -> str:
        """Return the message with other titles in the place of the names."""
        names, predicate = self.args
        return f"{', '.join(titles.get(name, name) for name in names)} {predicate}"
