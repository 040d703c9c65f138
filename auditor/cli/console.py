"""Write to the standard streams: data to standard output, everything else to standard error."""

import io
import os
import sys
from pathlib import Path

from auditor.text.formatting import escape_lines


def print_error(sentence: str) -> None:
    """Print a line to standard error. An audit continues if it cannot be written."""
    try:
        sys.stderr.write(f"{escape_lines(sentence)}\n")
        sys.stderr.flush()
    except OSError:
        redirect_to_devnull(2)


def print_line(line: str) -> None:
    """Print a line to standard output. A reader that has closed the pipe does not change a command's exit code."""
    try:
        sys.stdout.write(f"{escape_lines(line)}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        redirect_to_devnull(1)


def print_path(path: Path) -> None:
    """Print a path to standard output: escaped on a terminal, and exactly for other programs."""
    if sys.stdout.isatty() or not isinstance(sys.stdout, io.TextIOWrapper):
        print_line(str(path))
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        redirect_to_devnull(1)


def redirect_to_devnull(descriptor: int) -> None:
    """Redirect a stream whose reader has closed it, so that the last flush does not fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def open_standard_streams() -> None:
    """Open closed standard streams as ``/dev/null``, and replace what the encoding of a stream does not have.

    Otherwise files opened later would get their descriptors, and a name could end a command with a UnicodeEncodeError.
    """
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
    for output, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors=errors)
