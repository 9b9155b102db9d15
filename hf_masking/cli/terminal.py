"""The terminal: where tables go, where messages go, and bars."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
errors = Console(stderr=True)


@contextmanager
def logged_once() -> Iterator[None]:
    """Print what the plugin logs on standard error, each message once."""
    logger, handler = logging.getLogger("hf_masking"), _Once()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Once(logging.Handler):
    """A model is patched several times by one command, and says the same of its mask each time."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = f"{record.levelname.lower()}: {record.getMessage()}"
        if message not in self.said:
            self.said.add(message)
            errors.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal, with one task."""
    # Not as markup: brackets belong to masks.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    disable = not (visible and errors.is_terminal)
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        progress.add_task(description, total=total)
        yield progress
