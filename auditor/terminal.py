"""Words for people: one line at a time, names from devices made harmless, and nothing lost when nobody reads."""

import os
import sys
from datetime import timedelta

PIPE_WIDTH = 5_000
"""Columns of a table that goes to no terminal: a name that is broken in two is found by no search."""


MINUTE = 60
"""Seconds."""


def safe(text: object) -> str:
    """Text with everything that a terminal would act on written out as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def part(share: float, *, aligned: bool = False) -> str:
    """A part of a whole as per cent, cut to tenths; never all and never none of it unless it is.

    Args:
        share: from 0 to 1.
        aligned: a tenth always, so that numbers below one another can be compared.
    """
    if 0 < share < 0.001:  # noqa: PLR2004  less than can be told with one decimal
        return "<0.1%"
    tenths = int(share * 1_000 + 1e-6)  # cut, not rounded: 99.96% is not 100%
    tenths = min(tenths, 999) if share < 1 else tenths
    return f"{tenths // 10}%" if tenths % 10 == 0 and not aligned else f"{tenths / 10:.1f}%"


def fine_part(share: float) -> str:
    """A part of a whole as per cent, rounded, with as many digits as tell it from all and from none."""
    if share in {0.0, 1.0}:
        return f"{100 * share:.0f}%"
    digits = 1
    while digits < 6 and float(f"{100 * share:.{digits}f}") in {0.0, 100.0}:  # noqa: PLR2004  less is next to nothing
        digits += 1
    return f"{100 * share:.{digits}f}%"


def within(share: float | None, low: float | None, high: float | None) -> str:
    """A share and the limits of its interval, if it has any width; nothing where it is not known."""
    if share is None or low is None or high is None:
        return ""
    return fine_part(share) if low == high else f"{fine_part(share)} ({fine_part(low)} to {fine_part(high)})"


def points(change: float | None, low: float | None, high: float | None) -> str:
    """A change of a share in points of a per cent."""
    if change is None or low is None or high is None:
        return ""
    return f"{100 * change:+.1f}" if low == high else f"{100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def span(seconds: float) -> str:
    """A length of time, such as ``12.3 s`` or ``1:02:03``."""
    return f"{seconds:.1f} s" if seconds < MINUTE else str(timedelta(seconds=round(seconds)))


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


def counted(number: int, what: str) -> str:
    """A number of things, such as ``1 product`` or ``2,000 products``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
