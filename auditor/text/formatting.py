"""Format numbers, times and names for people. Names from devices are escaped."""

import time
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from math import ceil

PIPE_WIDTH = 5_000
"""Columns of a table that goes to no terminal. A search does not find a name that is broken across lines."""

SECONDS_PER_MINUTE, SECONDS_PER_HOUR, SECONDS_PER_DAY = 60, 3_600, 86_400

_MAX_DURATION = 999_999 * SECONDS_PER_DAY


def safe(text: object) -> str:
    """Return a text in which every character that a terminal would act on is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def escape_lines(text: str) -> str:
    """Return a text of several lines in which all other characters that a terminal would act on are escaped."""
    return text if text.isprintable() else "".join(c if c in "\n\t" else safe(c) for c in text)


def format_share(share: float, *, aligned: bool = False) -> str:
    """Format a share as a percentage, rounded to tenths. Only 1 gives ``100%``, and only 0 gives ``0%``.

    Args:
        share: from 0 to 1.
        aligned: always write the tenth, so that numbers in a column can be compared.
    """
    if 0 < share < 0.001:  # noqa: PLR2004  below the first decimal
        return "<0.1%"
    tenths = int(share * 1_000 + 0.5 + 1e-9)
    tenths = min(tenths, 999) if share < 1 else tenths  # 99.96% is not 100%
    return f"{tenths // 10}%" if tenths % 10 == 0 and not aligned else f"{tenths / 10:.1f}%"


def format_precise_share(share: float) -> str:
    """Format a share as a rounded percentage, with enough digits to differ from ``0%`` and ``100%``."""
    if share in {0.0, 1.0}:
        return f"{100 * share:.0f}%"
    digits = 1
    while digits < 6 and float(f"{100 * share:.{digits}f}") in {0.0, 100.0}:  # noqa: PLR2004  less is negligible
        digits += 1
    return f"{100 * share:.{digits}f}%"


def format_interval(share: float | None, low: float | None, high: float | None) -> str:
    """Format a share and its confidence interval, such as ``5.0% (4.1% to 6.2%)``; empty if the share is unknown."""
    if share is None or low is None or high is None:
        return ""
    exact = format_precise_share(share)
    return exact if low == high else f"{exact} ({format_precise_share(low)} to {format_precise_share(high)})"


def format_change(change: float | None, low: float | None, high: float | None) -> str:
    """Format the change of a share in percentage points, with its interval; empty if the change is unknown."""
    if change is None or low is None or high is None:
        return ""
    return f"{100 * change:+.1f}" if low == high else f"{100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def format_duration(seconds: float, *, round_up: bool = False) -> str:
    """Format a duration in its two largest units, such as ``12.3 s``, ``5 min 20 s``, ``1 h 2 min`` or ``3 d 4 h``."""
    if round_up and seconds < SECONDS_PER_MINUTE:
        seconds = ceil(10 * seconds) / 10
    if round(seconds, 1) < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    units = (("d", SECONDS_PER_DAY), ("h", SECONDS_PER_HOUR), ("min", SECONDS_PER_MINUTE), ("s", 1))
    numbers = (
        (*divmod(_whole(min(seconds, _MAX_DURATION) / part, up=round_up), size // part), large, small)
        for (large, size), (small, part) in pairwise(units)
    )
    count, rest, large, small = next(each for each in numbers if each[0])
    return f"{count:,} {large} {rest} {small}" if rest else f"{count:,} {large}"


def _whole(number: float, *, up: bool) -> int:
    return ceil(number) if up else round(number)


def format_rough_duration(seconds: float) -> str:
    """Format a duration in one unit, rounded up, such as ``5 min``, ``3 h`` or ``12 days``."""
    for unit, size in (("days", SECONDS_PER_DAY), ("h", SECONDS_PER_HOUR)):
        if seconds > 2 * size:
            return f"{ceil(seconds / size):,} {unit}"
    return f"{max(1, ceil(seconds / SECONDS_PER_MINUTE)):,} min"


def format_elapsed(seconds: float) -> str:
    """Format how long ago something was in whole units that have passed, at least ``1 min``."""
    for unit, size in (("days", SECONDS_PER_DAY), ("h", SECONDS_PER_HOUR)):
        if seconds >= 2 * size:
            return f"{int(seconds // size):,} {unit}"
    return f"{max(1, int(seconds // SECONDS_PER_MINUTE)):,} min"


def format_count(number: int, noun: str) -> str:
    """Format a number and its noun, such as ``1 product`` or ``2,000 products``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_utc(seconds: float) -> str:
    """Format seconds since 1970 as ``2026-11-22T02:00:03.123Z``."""
    milliseconds = round(seconds * 1000)
    return f"{format_utc_second(milliseconds // 1000)[:-1]}.{milliseconds % 1000:03d}Z"


def parse_manifest_time(text: str | None) -> datetime | None:
    """Return a time of a manifest in UTC; without a zone it is UTC. None: there is none, or it cannot be parsed."""
    if text is None:
        return None
    try:
        time_ = datetime.fromisoformat(text)
        return time_.astimezone(UTC) if time_.tzinfo else time_.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # in UTC it may be in the year 0 or 10000
        return None


@lru_cache(maxsize=4)  # nearly always the current second
def format_utc_second(second: int) -> str:
    """Format whole seconds since 1970 as ``2026-11-22T02:00:03Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


def escape_undecodable(path: str) -> str:
    """Return a path fit for JSON: bytes of a file name that are not UTF-8 are escaped."""
    return path.encode(errors="backslashreplace").decode()
