"""How signals end a command: with exit code 128 plus the signal's number, without a traceback, and in time.

It imports nothing slow, so that it is installed before the command is imported. ``auditor.cli.runtime`` replaces these
handlers while an audit is in progress.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

READING_COMMANDS = frozenset(
    {
        "completion",
        "config",
        "device",
        "devices",
        "diff",
        "history",
        "inventory",
        "metrics",
        "policy",
        "report",
        "runs",
        "sql",
    }
    | {"status", "verify"}
)
"""Commands that change nothing but the file that they write: a signal ends them immediately."""


def stop_signals() -> list[signal.Signals]:
    """Return the signals that end a command."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signals.append(signal.SIGHUP)
    return signals


class CommandSignals:
    """Handles the signals of one command.

    Attributes:
        exit_code: what the process exits with after a signal; None: no signal came.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._interrupts = False
        self._numbers = stop_signals()
        for number in self._numbers:
            signal.signal(number, self._handle)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in this block if a signal comes; outside of it, a signal exits immediately."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def exit_immediately(self) -> None:
        """Exit on a signal even while a library does not return to Python. An exception could abort DuckDB."""
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

        def wait() -> None:
            while (number := os.read(receiver, 1)[0]) not in self._numbers:
                pass
            exit_process(128 + number)

        threading.Thread(target=wait, daemon=True).start()

    def _handle(self, number: int, _frame: object) -> None:
        if self._interrupts and self.exit_code is not None:  # the first signal is still being handled
            return
        self.exit_code = 128 + number
        if self._interrupts:
            raise KeyboardInterrupt
        exit_process(self.exit_code)


def exit_process(code: int) -> NoReturn:
    """Remove temporary files and exit without waiting for any thread."""
    remove_temporary = getattr(sys.modules.get("auditor.storage.files"), "remove_temporary", None)
    if remove_temporary is not None:  # the module may not be imported yet
        remove_temporary()
    os._exit(code)
