"""Parse durations and deadlines as people write them."""

import re
from datetime import datetime, timedelta

_DURATION = re.compile(
    r"(?:(?P<days>\d{1,4})d)?(?:(?P<hours>\d{1,4})h)?(?:(?P<minutes>\d{1,5})m)?(?:(?P<seconds>\d{1,6})s)?"
)

_TIME_OF_DAY = re.compile(r"(\d\d?):(\d\d)(?::(\d\d))?")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``4h``, ``90m``, ``45s``, ``1h30m`` or ``7d``.

    Raises:
        ValueError: the text is not a duration, or it is 0. The message is a sentence for people.
    """
    stripped = text.strip().lower()
    match = _DURATION.fullmatch(stripped)
    parts = {unit: int(number) for unit, number in match.groupdict(default="0").items()} if match else {}
    seconds = timedelta(**parts).total_seconds()
    if seconds <= 0:
        if stripped.isascii() and stripped.isdigit() and int(stripped[:9]):
            raise ValueError(f"{text!r} has no unit; add one, such as {stripped[:9]}h or {stripped[:9]}m")
        raise ValueError(f"{text!r} is not a duration; give one such as 30d, 4h, 90m or 1h30m")
    return seconds


def parse_deadline(text: str, now: float) -> float:
    """Return the seconds since 1970 of a deadline: the next ``06:00``, or ``2026-11-23T06:00``.

    Args:
        text: a time of day in local time, or a date and time, either local or with an offset such as ``+01:00``.
        now: seconds since 1970.

    Raises:
        ValueError: the text is neither, or a date and time in the past. The message is a sentence for people.
    """
    advice = "give a time of day such as 06:00, or a date and time such as 2026-11-23T06:00"
    if (clock := _TIME_OF_DAY.fullmatch(text.strip())) is not None:
        today = datetime.fromtimestamp(now)  # noqa: DTZ006  local time is meant; timestamp() applies the offset
        try:
            at = today.replace(hour=int(clock[1]), minute=int(clock[2]), second=int(clock[3] or 0), microsecond=0)
        except ValueError:
            raise ValueError(f"{text!r} is not a time of day; {advice}") from None
        first, second = (at.replace(fold=fold).timestamp() for fold in (0, 1))
        # An hour may occur twice, and the same time tomorrow may be 23 or 25 hours away.
        times = (first, max(first, second), (at + timedelta(days=1)).timestamp())
        return next(moment for moment in times if moment > now)
    try:
        moment = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is not a time; {advice}") from None
    if moment <= now:
        raise ValueError(f"{text!r} is in the past; {advice}")
    return moment
