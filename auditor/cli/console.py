"""What the command line writes to its streams."""

import os
import sys


def say(sentence: str) -> None:
    """One line of talk on standard error; an audit goes on when nobody reads it."""
    try:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    except OSError:
        to_nowhere(2)


def tell(line: str) -> None:
    """One line of data on standard output; a reader who has left does not change what a command came to."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        to_nowhere(1)


def to_nowhere(descriptor: int) -> None:
    """Lets a stream whose reader has gone end in nothing, so that its last flush does not complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def open_standard_streams() -> None:
    """Puts nothing in the place of standard streams that were closed, or files opened later would take it."""
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
