"""Words for people: one line at a time, names from devices made harmless, and nothing lost when nobody reads."""

import time
from datetime import timedelta
from functools import lru_cache

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


def counted(number: int, what: str) -> str:
    """A number of things, such as ``1 product`` or ``2,000 products``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def utc(seconds: float) -> str:
    """Seconds since 1970 as ``2026-11-22T02:00:03.123Z``."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{_to_the_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)  # of now, nearly always
def _to_the_second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def printable(path: str) -> str:
    """A path fit for JSON: bytes of a file name that are not UTF-8 are written out."""
    return path.encode(errors="backslashreplace").decode()
