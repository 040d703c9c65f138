"""How a page words what it is told: text that is cut and made harmless, numbers, parts, times and ages."""

from datetime import UTC, datetime

from auditor.text import formatting as terminal
from auditor.text.formatting import safe

NAME = 48
"""Characters of a name or a version that a page shows; a device may call it whatever it wants, at any length."""


SENTENCE = 300
"""Characters of a sentence, such as why numbers are to be doubted."""


NOTHING = "\N{EN DASH}"
"""What stands for a number that is not known."""


_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def shown(text: object, most: int = NAME) -> str:
    """Text in one line of at most ``most`` characters, what nobody can see written out; nothing is told as such."""
    if text is None:
        return "unknown"
    whole = str(text)
    if not whole.strip():
        return "(empty)"
    line = safe(whole[: most + 1])
    return line if len(line) <= most and len(whole) <= most else line[: most - 1] + "…"


def number(value: float) -> str:
    """A number with commas between thousands, and a decimal where it is small and not whole."""
    whole = float(value).is_integer() or abs(value) >= 100  # noqa: PLR2004  from there on decimals say nothing
    return f"{value:,.0f}" if whole else f"{value:,.1f}"


def part(share: float | None) -> str:
    """A part of a whole as per cent, as terminals show it too; a dash where it is not known."""
    return NOTHING if share is None else terminal.part(share)


def moment(text: str | None) -> datetime | None:
    """The point in time that a manifest tells, or None where it tells none."""
    if text is None:
        return None
    try:
        point = datetime.fromisoformat(text)
    except ValueError:
        return None
    return point if point.tzinfo else point.replace(tzinfo=UTC)


def clock(point: datetime | None) -> str:
    """A point in time for people, UTC."""
    return "an unknown time" if point is None else f"{point.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def day(text: str) -> str:
    """The day and hour of a manifest's time, as short as it stands under a picture."""
    point = moment(text)
    return shown(text, 16) if point is None else f"{point.astimezone(UTC):%-d %b}"


def age(since: datetime, now: datetime) -> str:
    """How long ago something was, in the unit that says it best."""
    seconds = (now - since).total_seconds()
    if seconds < 0:
        return "from the future, as the clocks say"
    for unit, length in (("day", _DAY), ("hour", _HOUR), ("minute", _MINUTE)):
        if seconds >= (2 * length if unit == "day" else length):
            count = int(seconds // length)
            return f"{count:,} {unit}{'' if count == 1 else 's'} old"
    return "less than a minute old"
