"""Handle Ctrl-C and SIGTERM: raise them, or note them where a run first has to write a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOGETHER = 0.5  # seconds in which `timeout` and some launchers send one signal twice


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work; the message says what is left of it.

    exit_code: 128 + the number of the signal, as shells expect.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @classmethod
    def like(cls, stop: KeyboardInterrupt, message: str) -> Interrupted:
        """Return the interruption with another message."""
        return cls(stop.number if isinstance(stop, cls) else signal.SIGINT, message)

    @property
    def exit_code(self) -> int:
        return 128 + self.number


@contextmanager
def raised() -> Iterator[None]:
    """Let SIGTERM raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt, so that everything is closed."""
    with _handled({signal.SIGTERM: _raise}):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore Ctrl-C, here and in processes that are started meanwhile."""
    with _handled({signal.SIGINT: signal.SIG_IGN}):
        yield


class Noted:
    """A signal that has come and is still to be obeyed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.number = 0
        self.when = 0.0
        self.telling: threading.Thread | None = None
        self.before: Mapping[int, Any] = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first one, and let a second one act at once."""
        if not self.number:
            self.number, self.when = number, time.monotonic()
            # The trap: a signal may come while this thread writes to stderr, which no handler may then write to.
            self.telling = threading.Thread(target=self.tell, daemon=True)
            self.telling.start()
        elif time.monotonic() - self.when > _TOGETHER:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)


@contextmanager
def noted(tell: Callable[[], None]) -> Iterator[Noted]:
    """Note Ctrl-C and SIGTERM instead of raising them.

    A program's own handlers stay, and what it ignores stays ignored. Elsewhere than in the main thread, where Python
    takes no signals, nothing is ever noted.

    Parameters:
        tell: called at the first signal, to say what happens now.
    """
    found = Noted(tell)
    ours = (signal.SIG_DFL, signal.default_int_handler, _raise)
    mine: dict[int, Any] = {number: found.note for number in SIGNALS if signal.getsignal(number) in ours}
    try:
        with _handled(mine) as found.before:
            yield found
    finally:
        if found.telling is not None:
            found.telling.join()


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def _handled(handlers: Mapping[int, Any]) -> Iterator[dict[int, Any]]:
    """Put handlers in place, and what was there before back; give the latter."""
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
