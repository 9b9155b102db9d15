"""Print to the terminal: tables, messages, progress lines and bars."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import ControlType

from ..streams import is_stdout
from ..tables import Grid

# No markup and no emoji: brackets and colons belong to masks and file names.
console = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)


def tables_beside(output: Path | None) -> Console:
    """Return the console for tables: standard output, unless the figures go there."""
    return errors if output is not None and is_stdout(output) else console


def print_table(where: Console, table: Grid, title: str | None = None) -> None:
    """Print a table that fits the width of the console, below its title."""
    where.print(f"{title}\n" if title else "", soft_wrap=True)
    where.print(table.text(where.width), soft_wrap=True)


def print_failures(where: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line for each row that has an error."""
    for row in rows:
        if "error" in row:
            where.print(f"{row['runs']} failed: {row['error']}", soft_wrap=True)


def signs() -> dict[str, str]:
    """Return the characters for drawing masks: ASCII if the terminal's encoding has no others."""
    drawn = {"allowed": "■", "between": "▒", "excluded": "·"}
    try:
        "".join(drawn.values()).encode(console.encoding)
    except UnicodeEncodeError:
        return {"allowed": "#", "between": "+", "excluded": "."}
    return drawn


@contextmanager
def logged_once() -> Iterator[None]:
    """Print what the package logs, and warnings of libraries, on standard error, each message once."""
    logger, handler = logging.getLogger("hf_masking"), _Once()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **more: warn(next(iter(str(message).splitlines()), ""))
            yield
    finally:
        logger.removeHandler(handler)


def warn(message: str) -> None:
    """Log a warning, which is printed on standard error."""
    logging.getLogger("hf_masking").warning("%s", message)


class _Once(logging.Handler):
    """Print each message once: one command may patch a model several times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # The library names its keyword; here it is an option.
        message = record.getMessage().replace("replace_model_window=True", "--replace-model-window")
        message = f"{record.levelname.lower()}: {message}"
        if message not in self.said:
            self.said.add(message)
            errors.print(message, soft_wrap=True)


class Progression:
    """Lines on how far something is: each takes the place of the one before, where that is a terminal.

    Elsewhere one of them is printed now and then, so that a log shows that all is well.

    seconds: so long nothing is printed there.
    """

    def __init__(self, seconds: float = 5) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def show(self, line: str) -> None:
        if errors.is_terminal:
            clear_line()
            errors.print(line, end="\r", no_wrap=True, overflow="ellipsis")
        elif time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            errors.print(line, soft_wrap=True)


def clear_line() -> None:
    """Erase the line that `Progression` left on the terminal, here or in another process."""
    if errors.is_terminal:
        errors.control(Control((ControlType.ERASE_IN_LINE, 2), ControlType.CARRIAGE_RETURN))


def resuming_command() -> str:
    """Return the command that resumes this one."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return f"continue with: {shlex.join(['hf-masking', *arguments, '--resume'])}"


def say_interrupted(message: str) -> None:
    """Print one line about Ctrl-C or SIGTERM, in the main process only."""
    if os.environ.get("RANK", "0") == "0":
        clear_line()
        errors.print(f"interrupted: {message}" if message else "interrupted", soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Progress]:
    """Show a progress bar with one task on standard error, if that is a terminal."""
    # A column has its own setting for markup.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    disable = not (visible and errors.is_terminal)
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        progress.add_task(description, total=total)
        yield progress


@contextmanager
def counting_up(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds to a progress bar; where there is no terminal, it prints a line now and then.

    Parameters:
        unit: what is counted, and how: "tokens scored".
    """
    progression = Progression()
    with progress_bar(description, total) as bar:

        def advance(count: int) -> None:
            bar.advance(bar.task_ids[0], count)
            if not errors.is_terminal:
                progression.show(f"{bar.tasks[0].completed:,.0f} of {total:,} {unit}")

        yield advance
