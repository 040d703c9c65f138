"""Time zones of tables for people: checked names, and times in UTC that are shown in another zone."""

import re
from contextlib import suppress
from datetime import UTC, datetime, tzinfo

_UTC_TIME = re.compile(r"\b(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d)(:\d\d)?(?:\.\d+)?(?: UTC\b|Z\b)")
"""A time in a sentence, such as ``2026-11-23 02:00 UTC`` or ``2026-11-23T02:00:00.123Z``."""


_MAX_NAME = 64
"""Characters of a name that is tried, and of one that an error quotes. The longest zone has 32."""


def parse_time_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name such as ``Asia/Shanghai``.

    Raises:
        ValueError: this machine has no such zone. The message names the closest one.
    """
    import difflib
    from zoneinfo import ZoneInfo, available_timezones

    if len(name) <= _MAX_NAME:
        with suppress(ValueError, OSError, LookupError):  # no name, a folder of zones, or not there
            return ZoneInfo(name)
    zones = available_timezones()
    if not zones:
        raise ValueError("this machine has no time zones; install the package tzdata")
    lower = {zone.lower(): zone for zone in sorted(zones)}
    cities = {zone.rpartition("/")[2]: zone for zone in lower}
    wanted = name.lower().replace(" ", "_")
    close = difflib.get_close_matches(wanted, [*lower, *cities], n=1) if len(wanted) <= _MAX_NAME else []
    hint = (
        f"did you mean {lower[cities.get(close[0], close[0])]}?" if close else "give one such as Asia/Shanghai or UTC"
    )
    quoted = repr(name) if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]!r}…"
    raise ValueError(f"{quoted} is no time zone; {hint}")


def show_times(sentence: str, zone: tzinfo | None) -> str:
    """Return a sentence whose times in UTC are in a zone (None: this machine's), with its offset."""
    if zone is UTC:
        return sentence
    return _UTC_TIME.sub(lambda found: _in_zone(f"{found[1]} {found[2]}{found[3] or ''}", zone) or found[0], sentence)


def show_time(moment: object, zone: tzinfo | None) -> object:
    """Return a moment in UTC as text in a zone (None: this machine's), with its offset; anything else as it is."""
    if zone is UTC or moment is None:
        return moment
    return _in_zone(str(moment), zone) or moment


def _in_zone(text: str, zone: tzinfo | None) -> str | None:
    """Return a time in another zone, in minutes if it has no seconds; None: it is not a time."""
    try:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC).astimezone(zone)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat(" ", "seconds" if text.count(":") > 1 else "minutes")
