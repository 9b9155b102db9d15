"""The terminal: where tables go, where messages go, and bars."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..streams import is_stdout

# Without markup and emoji: brackets and colons belong to masks and to names of files.
console = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)


def tables_beside(output: Path | None) -> Console:
    """Return where tables go: on standard output, unless the figures themselves do."""
    return errors if output is not None and is_stdout(output) else console


def signs() -> dict[str, str]:
    """Return the signs that masks are drawn with: ASCII where the terminal takes nothing else."""
    drawn = {"allowed": "■", "between": "▒", "excluded": "·"}
    try:
        "".join(drawn.values()).encode(console.encoding)
    except UnicodeEncodeError:
        return {"allowed": "#", "between": "+", "excluded": "."}
    return drawn


@contextmanager
def logged_once() -> Iterator[None]:
    """Print what the plugin logs on standard error, each message once."""
    logger, handler = logging.getLogger("hf_masking"), _Once()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def warn(message: str) -> None:
    """Print a warning on standard error, as those of the library."""
    logging.getLogger("hf_masking").warning("%s", message)


class _Once(logging.Handler):
    """A model is patched several times by one command, and says the same of its mask each time."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # The library names its own keyword; here it is an option.
        message = record.getMessage().replace("replace_model_pattern=True", "--replace-model-pattern")
        message = f"{record.levelname.lower()}: {message}"
        if message not in self.said:
            self.said.add(message)
            errors.print(message, soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal, with one task."""
    # A column has its own say on markup.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    disable = not (visible and errors.is_terminal)
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        progress.add_task(description, total=total)
        yield progress
