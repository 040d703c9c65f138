"""Command-line interface: commands, their options, and what they print."""

import contextlib
import gc
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see ``auditor.cli.app.main``.

    This is the entry point of a process. SIGINT, SIGTERM and SIGHUP end it without a traceback.
    """
    from auditor.cli.signals import READING_COMMANDS, CommandSignals

    signals = CommandSignals()
    from auditor.cli.console import open_standard_streams

    open_standard_streams()
    given = sys.argv[1:] if arguments is None else arguments
    gc.disable()  # what is imported stays: searching it for garbage takes a tenth of a short command
    from auditor.cli import app

    gc.freeze()
    gc.enable()
    if READING_COMMANDS.intersection(given[:1]):
        signals.exit_immediately()
        try:
            code = app.main(arguments)
        except Exception as error:  # noqa: BLE001  it is printed as it would be, or as JSON
            code = app.print_unexpected(error)
        _exit(code)  # a signal while Python ends would not be handled
    try:
        with signals.interrupting():
            code = app.main(arguments)
    except BaseException as error:  # a library may report the interruption as an error of its own
        if signals.exit_code is not None:
            code = signals.exit_code
        elif isinstance(error, Exception):
            code = app.print_unexpected(error)
        else:
            raise
    code = code if signals.exit_code is None else signals.exit_code
    if "obstore" in sys.modules:  # one of its threads can abort the process while Python ends
        _exit(code)
    return code


def _exit(code: int) -> NoReturn:
    from auditor.cli.signals import exit_process

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader has closed the pipe
            stream.flush()
    exit_process(code)
