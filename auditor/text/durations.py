"""When an audit has to be done: a time of day or a length of time, as people write them, into a point in time."""

import re
from datetime import datetime, timedelta

from auditor.errors import UsageError

_LENGTH = re.compile(
    r"(?:(?P<days>\d{1,4})d)?(?:(?P<hours>\d{1,4})h)?(?:(?P<minutes>\d{1,5})m)?(?:(?P<seconds>\d{1,6})s)?"
)


_CLOCK = re.compile(r"(\d\d?):(\d\d)(?::(\d\d))?")


def seconds_of(text: str) -> float:
    """The seconds of ``4h``, ``90m``, ``45s``, ``1h30m`` or ``7d``.

    Raises:
        UsageError: it is not a length of time, or none at all.
    """
    match = _LENGTH.fullmatch(text.strip().lower())
    parts = {unit: int(number) for unit, number in match.groupdict(default="0").items()} if match else {}
    seconds = timedelta(**parts).total_seconds()
    if seconds <= 0:
        raise UsageError(f"{text!r} is no length of time; give one such as 4h, 90m or 1h30m")
    return seconds


def next_time(text: str, now: float) -> float:
    """The next ``06:00`` of this machine's clock, or ``2026-11-23T06:00``, in seconds since 1970.

    Args:
        text: a time of day, or a date and time, with an offset such as ``+01:00`` or in local time.
        now: seconds since 1970.

    Raises:
        UsageError: it is neither, or a date and time that is over.
    """
    advice = "give a time of day such as 06:00, or a date and time such as 2026-11-23T06:00"
    if (clock := _CLOCK.fullmatch(text.strip())) is not None:
        today = datetime.fromtimestamp(now)  # noqa: DTZ006  local time is what is meant; timestamp() minds the offset
        try:
            at = today.replace(hour=int(clock[1]), minute=int(clock[2]), second=int(clock[3] or 0), microsecond=0)
        except ValueError:
            raise UsageError(f"{text!r} is no time of day; {advice}") from None
        first, second = (at.replace(fold=fold).timestamp() for fold in (0, 1))
        # An hour may come twice, and tomorrow is not 24 hours on: a day may have 23 or 25.
        times = (first, max(first, second), (at + timedelta(days=1)).timestamp())
        return next(moment for moment in times if moment > now)
    try:
        moment = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{text!r} is no time; {advice}") from None
    if moment <= now:
        raise UsageError(f"{text!r} is over; {advice}")
    return moment
