"""Write to the standard streams: data to standard output, everything else to standard error."""

import os
import sys


def print_error(sentence: str) -> None:
    """Print a line to standard error. An audit continues if it cannot be written."""
    try:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    except OSError:
        redirect_to_devnull(2)


def print_line(line: str) -> None:
    """Print a line to standard output. A reader that has closed the pipe does not change a command's exit code."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        redirect_to_devnull(1)


def redirect_to_devnull(descriptor: int) -> None:
    """Redirect a stream whose reader has closed it, so that the last flush does not fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def open_standard_streams() -> None:
    """Open closed standard streams as ``/dev/null``. Otherwise files opened later would get their descriptors."""
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
