"""Format values for a page: bounded and printable text, numbers, percentages, times and ages."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from auditor.text.formatting import format_elapsed, format_share, parse_manifest_time, safe

MAX_NAME_LENGTH = 48
"""Characters of a name or a version on a page; devices may report any text of any length."""

MAX_SENTENCE_LENGTH = 300
"""Characters of a sentence, such as a warning."""

UNKNOWN = "\N{EN DASH}"
"""Placeholder for an unknown number."""


def display_text(text: object, limit: int = MAX_NAME_LENGTH) -> str:
    """Format text as one line of at most ``limit`` characters, with escapes for characters that are not printable."""
    if text is None:
        return "unknown"
    full = str(text)
    if not full.strip():
        return "(empty)"
    line = safe(full[: limit + 1])
    return line if len(line) <= limit and len(full) <= limit else line[: limit - 1] + "…"


def format_number(value: float) -> str:
    """Format a number with thousands separators, and with one decimal if it is small and not an integer."""
    integer = float(value).is_integer() or abs(value) >= 100  # noqa: PLR2004  decimals do not matter from there on
    return f"{value:,.0f}" if integer else f"{value:,.1f}"


def format_percent(share: float | None) -> str:
    """Format a share as a percentage; a dash if it is unknown."""
    return UNKNOWN if share is None else format_share(share)


def format_time(time: datetime | None) -> str:
    """Format a time in UTC, such as ``22 Nov 2026, 02:00 UTC``."""
    return "an unknown time" if time is None else f"{time.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def format_day(text: str) -> str:
    """Format the day of a manifest's time, such as ``22 Nov``."""
    time = parse_manifest_time(text)
    return display_text(text, 16) if time is None else f"{time.astimezone(UTC):%-d %b}"


def format_since(earlier: str, later: str) -> str:
    """Format the start of an earlier run by its day; by its time of day if the later run is of the same day."""
    before, now = parse_manifest_time(earlier), parse_manifest_time(later)
    if before is None or now is None or before.date() != now.date():
        return format_day(earlier)
    same_minute = f"{before:%H:%M}" == f"{now:%H:%M}"
    return f"{before:%H:%M:%S} UTC" if same_minute else f"{before:%H:%M} UTC"


def format_starts(starts: Sequence[str]) -> list[str]:
    """Format the starts of runs: each by its day, with its minute, or its second, if others have the same text."""
    times = [parse_manifest_time(text) for text in starts]
    texts = [
        [format_day(text) if time is None else f"{time:{pattern}}" for text, time in zip(starts, times, strict=True)]
        for pattern in ("%-d %b", "%-d %b, %H:%M", "%-d %b, %H:%M:%S")
    ]
    counts = [Counter(each) for each in texts]
    return [
        next((text for text, count in zip(options, counts, strict=True) if count[text] == 1), options[-1])
        for options in zip(*texts, strict=True)
    ]


def format_days(days: float) -> str:
    """Format a number of days, such as ``1 day`` or ``1.5 days``."""
    return f"{days:g} {'day' if days == 1 else 'days'}"


def format_age(since: datetime, now: datetime) -> str:
    """Format the age of something, such as ``3 h old``."""
    seconds = (now - since).total_seconds()
    return "dated in the future" if seconds < 0 else f"{format_elapsed(seconds)} old"


def format_signed(value: float, digits: int = 1) -> str:
    """Format a number with its sign and thousands separators."""
    return f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_points(change: float) -> str:
    """Format the change of a share in percentage points, such as ``+0.7 points``; empty if it rounds to zero."""
    text = format_signed(100 * change)
    return "" if text[1:] == "0.0" else f"{text} {'point' if text[1:] == '1.0' else 'points'}"
