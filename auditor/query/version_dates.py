"""Dates in versions: which numbers can be one, and what the versions of a module say about how to read it.

A date is written with the day, the month or the year first, so its parts may be in the reverse order of their weight.
What can be a date is ordered only where all readings agree that fit all such versions.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

Order = Literal["older", "same", "newer", "unordered"]
"""How a version compares to another one. ``same``: equal strings, or such as ``1.2``, ``v1.2`` and ``1.2.0``."""

DateKeys = Mapping[str, tuple[int, str]]
"""The readings of a text as a time, by their names, and what to order by: a number, then a text of equal length."""

MIN_COUNTER_DIGITS, MIN_HASH_DIGITS = 6, 7
"""Numbers with at least so many digits may be a date, and a commit: git abbreviates to seven digits or more."""

_YEARS = range(1990, 2100)

_LEADING_YEARS = range(1990, 2040)
"""Years that a number of any meaning may begin with. They are fewer, as no month and day confirm them."""

_SECONDS = range(1_100_000_000, 2_100_000_000)
"""Seconds since 1970 that may be the time of a build: 2004 to 2036."""

_MAX_EPOCH_DIGITS = 13
"""Digits of a time in milliseconds since 1970."""


_TIME = re.compile("(?:[01][0-9]|2[0-3])(?:[0-5][0-9]){1,2}")
"""Hour, minute and perhaps second."""


def read_date(first: str, second: str, third: str) -> dict[str, int]:
    """Return the readings of three numbers as a date, and the day of each. Without four digits, a year has two."""
    orders = {"YMD": (first, second, third), "DMY": (third, second, first), "MDY": (third, first, second)}
    days = {name: _read_day(*parts) for name, parts in orders.items()}
    return {name: day for name, day in days.items() if day is not None}


def _read_day(year: str, month: str, day: str) -> int | None:
    if len(year) not in {2, 4} or not 1 <= len(month) <= 2 or not 1 <= len(day) <= 2:  # noqa: PLR2004  digits
        return None
    number = _full_year(year)
    if len(year) == 4 and number not in _YEARS:  # noqa: PLR2004  digits
        return None
    try:
        return date(number, int(month), int(day)).toordinal()
    except ValueError:
        return None


@lru_cache(maxsize=16_384)
def read_compact_time(digits: str) -> DateKeys:
    """Return the readings of a number without separators as a time, such as ``22122022``, ``200927`` or an epoch."""
    return dict(_read_compact(digits))


def _read_compact(digits: str) -> Iterator[tuple[str, tuple[int, str]]]:
    length = len(digits)
    if length == MIN_COUNTER_DIGITS or _TIME.fullmatch(digits[6:]):
        for name, day in read_date(digits[:2], digits[2:4], digits[4:6]).items():
            yield f"{name}, short year", (day, digits[6:])
    if length < MIN_HASH_DIGITS:
        return
    if int(digits[:4]) in _LEADING_YEARS:
        yield "year first", (int(digits[:4]), digits[4:])
    if length >= 8:  # noqa: PLR2004  DDMMYYYY
        for name, day in read_date(digits[:2], digits[2:4], digits[4:8]).items():
            yield name, (day, digits[8:])
    if length in {10, _MAX_EPOCH_DIGITS} and int(digits[:10]) in _SECONDS:
        yield "epoch", (int(digits[:10]), digits[10:])


def common_readings(keys: Iterable[DateKeys]) -> tuple[str, ...]:
    """Return the names of the readings that fit all of the texts."""
    fitting: set[str] | None = None
    for each in keys:
        fitting = set(each) if fitting is None else fitting.intersection(each)
    return tuple(sorted(fitting or ()))


def readings_agree(texts: Mapping[str, DateKeys], compare: Callable[[str, str], Order]) -> bool:
    """Return whether a reading fits all of the texts, and each that does orders them as ``compare`` does."""
    names = common_readings(texts.values())
    for name in names:
        ordered = sorted(texts, key=lambda text: texts[text][name])
        for one, other in pairwise(ordered):
            if texts[one][name] == texts[other][name] or compare(one, other) != "older":
                return False
    return bool(names)


def compare_readings(one: DateKeys, other: DateKeys, names: Collection[str], *further: Order) -> Order:
    """Return the order in which the named readings and ``further`` orders agree, otherwise ``unordered``."""
    orders = set(further)
    for name in names:
        key, against = one[name], other[name]
        orders.add("unordered" if key == against else "older" if key < against else "newer")
    return orders.pop() if len(orders) == 1 else "unordered"


def compare_digits(digits: str, other: str) -> Order:
    """Compare two different numbers by their value, whatever their length."""
    if digits.lstrip("0") == other.lstrip("0"):
        return "unordered"
    longer = max(len(digits), len(other))
    return "older" if digits.zfill(longer) < other.zfill(longer) else "newer"


class CounterOrder:
    """The order of numbers of equal length, in one place of a module's versions, that may be dates or commits.

    Numbers of six digits are dates or counters. Longer ones may be commits too, and are ordered only if they are times,
    or have the first half of their digits in common.
    """

    def __init__(self, numbers: Collection[str], *, may_be_commits: bool) -> None:
        """Find the readings that fit ``numbers``. ``may_be_commits``: they have seven digits, letters included."""
        times = [digits for digits in numbers if read_compact_time(digits)]
        others = [digits for digits in numbers if not read_compact_time(digits)]
        self._may_be_commits = may_be_commits
        self._readings = common_readings(map(read_compact_time, times))
        if may_be_commits:
            self._as_numbers, self._others_as_numbers = _share_first_half(numbers), _share_first_half(others)
        else:
            # Without a leading zero, one number that is no date shows that the others are counters too.
            zeros = any(digits[0] == "0" for digits in times)
            keys = {digits: read_compact_time(digits) for digits in times}
            self._as_numbers = not times or (bool(others) and not zeros) or readings_agree(keys, compare_digits)
            self._others_as_numbers = True

    def compare(self, digits: str, other: str) -> Order:
        """Compare two different numbers of those that were given to the constructor."""
        by_value = compare_digits(digits, other)
        one, two = read_compact_time(digits), read_compact_time(other)
        if self._as_numbers or (not one and not two and self._others_as_numbers):
            return by_value
        if not one or not two or not self._readings:
            return "unordered"
        return compare_readings(one, two, self._readings, *(() if self._may_be_commits else (by_value,)))


def _share_first_half(numbers: Collection[str]) -> bool:
    return len({digits[: (len(digits) + 1) // 2] for digits in numbers}) <= 1


class DatePlace(NamedTuple):
    """Where and how numbers of a version are read as a date: ``width`` numbers from ``start`` on, as ``form``."""

    start: int
    width: int
    form: str


class PlacedDate(NamedTuple):
    """A date in a version.

    Attributes:
        value: what to order by.
        full: whether every number is written with all its digits, as dates are if versions of the module are dates.
        typical: whether numbers are rare in a version that is no date, such as one with a leading zero.
    """

    value: int
    full: bool
    typical: bool


_LONG_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
                "november", "december")  # fmt: skip

MONTHS = frozenset((*_LONG_MONTHS, *(month[:3] for month in _LONG_MONTHS), "sept"))

_PERIODS = dict.fromkeys(("w", "ww", "wk", "kw", "cw", "week"), 53) | {"q": 4, "h": 2} | dict.fromkeys(MONTHS, 31)
"""Letters before a week, a quarter, a half-year or a day that the year follows, and how many of them there are."""

_SPLIT = re.compile("([0-9]{1,2})((?:19|20)[0-9]{2}|[0-9]{2})")
"""A week, quarter or month, and its year."""

_YEAR_FIRST = range(2010, 2040)
"""Years of versions such as ``24.04``, which may be 24 April too."""


def placed_dates(numbers: Sequence[tuple[str, str]], taken: range) -> dict[DatePlace, PlacedDate]:
    """Return the readings of a version's numbers as dates that do not begin with the year.

    A year of four digits, or a number that may be a complete date, ends them: what follows is no other date.

    Args:
        numbers: the word before each number, and its digits.
        taken: places of a date with a year of four digits, which is read otherwise.
    """
    found: dict[DatePlace, PlacedDate] = {}
    for start, (word, digits) in enumerate(numbers):
        for width in (1, 2, 3):
            window = numbers[start : start + width]
            if len(window) < width or any(mark not in _JOINTS for mark, _ in window[1:]):
                break
            if start < taken.stop and taken.start < start + width:
                continue
            parts = [part for _, part in window]
            is_whole = len(numbers) == width
            readings = [*_read_days(parts), *_read_months(parts, is_whole=is_whole), *_read_period(word, parts)]
            found |= {DatePlace(start, width, form): date for form, date in readings}
        if len(digits) >= MIN_COUNTER_DIGITS or _is_year(digits):
            break
    return found


_JOINTS = frozenset(("", "-", "_"))
"""What may be between the numbers of a date; a dot is the empty word."""


def fitting_places(versions: Collection[Mapping[DatePlace, PlacedDate]]) -> tuple[DatePlace, ...]:
    """Return the readings that fit all versions of a module, and that it is likely to have."""
    common: set[DatePlace] | None = None
    for dates in versions:
        common = set(dates) if common is None else common.intersection(dates)
    return tuple(
        sorted(
            place
            for place in common or ()
            if all(dates[place].full for dates in versions) or any(dates[place].typical for dates in versions)
        )
    )


def _read_days(parts: Sequence[str]) -> Iterator[tuple[str, PlacedDate]]:
    """Yield the readings of two or three numbers as a day with its year."""
    lengths, digits = [*map(len, parts)], "".join(parts)
    if len(parts) == 3 and max(lengths[:2]) <= 2 == lengths[2]:  # noqa: PLR2004  DD.MM.YY
        first, second, third = parts
        full = lengths[0] == lengths[1] == 2  # noqa: PLR2004  digits
        typical = any(part[0] == "0" for part in parts) or int(first) > 12  # noqa: PLR2004  months
    elif len(parts) > 1 and len(digits) in {6, 8} and not any(length % 2 for length in lengths):  # DD.MMYY
        first, second, third = digits[:2], digits[2:4], digits[4:]
        full, typical = False, not _is_year(parts[0])
    else:
        return
    for form, day in read_date(first, second, third).items():
        yield form, PlacedDate(day, full, typical)


def _read_months(parts: Sequence[str], *, is_whole: bool) -> Iterator[tuple[str, PlacedDate]]:
    """Yield the readings of one or two numbers as a month with its year, or a day without one."""
    lengths, digits = [*map(len, parts)], "".join(parts)
    if lengths in ([1, 4], [2, 4], [6]):  # MM.YYYY
        if (month := _read_month(digits[:-4], digits[-4:])) is not None:
            yield "MY", PlacedDate(month, full=True, typical=False)
    elif lengths in ([2, 2], [4]):  # MMYY
        alone = is_whole or lengths == [4]
        if (month := _read_month(digits[:2], digits[2:])) is not None:
            yield "MY", PlacedDate(month, alone, any(part[0] == "0" for part in parts))
        if alone and (date_of_year := _read_day("2000", digits[2:], digits[:2])) is not None:
            year_first = len(parts) == 2 and _full_year(digits[:2]) in _YEAR_FIRST  # noqa: PLR2004
            yield "DM", PlacedDate(date_of_year, full=False, typical=not year_first)


def _read_period(word: str, parts: Sequence[str]) -> Iterator[tuple[str, PlacedDate]]:
    """Yield the reading of a week, quarter or the like with its year."""
    last = _PERIODS.get(word.strip("-_. ").lower())
    if last is None or len(parts) > 2 or (match := _SPLIT.fullmatch("".join(parts))) is None:  # noqa: PLR2004
        return
    if (len(parts) == 1 or match[1] == parts[0]) and 1 <= int(match[1]) <= last:
        yield "period", PlacedDate(100 * _full_year(match[2]) + int(match[1]), full=True, typical=False)


def _read_month(month: str, year: str) -> int | None:
    number = _full_year(year)
    return 12 * number + int(month) if 1 <= int(month) <= 12 and number in _LEADING_YEARS else None  # noqa: PLR2004


def _full_year(digits: str) -> int:
    number = int(digits)
    return number if len(digits) == 4 else number + (1900 if number > 68 else 2000)  # noqa: PLR2004  as %y of strptime


def _is_year(digits: str) -> bool:
    return len(digits) == 4 and int(digits) in _LEADING_YEARS  # noqa: PLR2004  digits
