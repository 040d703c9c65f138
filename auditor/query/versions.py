"""The order of the versions of one module. Versions are ordered only where a documented rule orders them.

Firmware versions are not semantic versions: vendors write what they like. A version is parsed as

    [letters] numbers [suffix]        V1.2.3   2.03   R12   20240115   2024-01-15   1.4.2-hotfix2   1.0rc1   FW_1.2

A version of another shape, or of more than 200 characters, is unordered against every other version. For the others:

1. The letters must be equal, including their case. Only ``v``, ``V`` and no letters are equal (``v1.2`` and ``1.2``).
2. Numbers are joined by dots, or three and more by ``-`` or by ``_``; the separator must be equal in both versions.
   Numbers are compared from the left (``1.9`` is older than ``1.10``). Missing numbers are zeros (``1.2`` is older
   than ``1.2.1``, and the same as ``1.2.0``).
3. A number with a leading zero may be a number or the digits of a decimal fraction. It is ordered where both readings
   agree (``2.03`` is older than ``2.10``), and otherwise not (``2.03`` and ``2.1``, ``2.03`` and ``2.3``).
4. Three numbers with the year at the end, or with two digits each, may be a date: day, month and year, or month, day
   and year, or year, month and day. They are ordered where all readings agree that fit all such versions of the
   module, the comparison as numbers included (``27.10.20`` is older than ``28.10.20``, but ``27.09.20`` and
   ``04.10.20`` are unordered). If all versions have a year of four digits and padded days, they are dates, and no other
   numbers (``27.09.2020`` is older than ``04.10.2020``; ``01.02.2020`` and ``02.01.2020`` are unordered).
5. A number of six digits or more is ordered against zero and numbers of equal length only. Six digits may be a date
   or a counter, and are ordered where all readings agree. More digits may be a commit as well. They are ordered if they
   are times in a reading that fits all of them (``20240115``, ``22122022``, ``1609459200``), or if the numbers of the
   module have the first half of their digits in common (``1000001`` and ``1000002``).
6. Numbers may be a date with the year at the end in further forms: behind a prefix or before a build number
   (``1.27.09.20``, ``27.09.20.1``), with parts written together (``27.0920``), a month and a year (``12.2023``,
   ``12-23``, ``1223``, ``122023``), a day and a month (``2709``), or a week, quarter or day behind letters that say so
   (``WW52.23``, ``Q4.2023``). If all versions of the module with these letters have such a date in one place, an order
   that it contradicts is not reported. A day before the name of a month (``27-Sep-2020``) is unordered.
7. ``alpha``, ``beta`` and ``rc`` come in this order before the version without a suffix, as in semantic versioning and
   PEP 440. Their case does not matter, nor ``-``, ``_`` or ``.`` around them. Equal words are ordered by their number.
8. Any other suffix, ``-word2`` or ``-2``, is ordered against the same word with another number (``-hotfix1`` and
   ``-hotfix2``), and against no other suffix behind the same numbers. A hotfix comes after the version that it fixes,
   but semantic versioning puts it before.

Only ASCII letters and digits count. Rules 4 to 6 depend on the versions of the module: ``docs/rules.md`` has examples.
For fixed versions of a module, "older" is a strict partial order, and "same" is an equivalence that it respects:
components are compared lexicographically, and what can stand in one place is partially ordered.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, zip_longest
from typing import NamedTuple

from auditor.query.version_dates import (
    MIN_COUNTER_DIGITS,
    MIN_HASH_DIGITS,
    MONTHS,
    CounterOrder,
    DateKeys,
    DatePlace,
    Order,
    PlacedDate,
    common_readings,
    compare_digits,
    compare_readings,
    fitting_places,
    placed_dates,
    read_date,
    readings_agree,
)

MAX_LENGTH = 200
"""Characters of the longest version that is ordered. The platform allows 64."""

_SHAPE = re.compile(
    r"(?P<letters>(?:[A-Za-z]+[-_. ]?)?)"
    r"(?P<numbers>[0-9]+(?:\.[0-9]+)*|[0-9]+(?:-[0-9]+){2,}|[0-9]+(?:_[0-9]+){2,})"
    r"(?:[-_.]?(?P<stage>(?i:alpha|beta|rc))[-_.]?(?P<stage_number>[0-9]*)"
    r"|(?P<word>[-_.][A-Za-z]+[-_.]?|[-_](?=[0-9]))(?P<word_number>[0-9]*))?",
    re.ASCII,
)

_STAGES = ("alpha", "beta", "rc", "")

_HEX_LETTERS = re.compile(r"[-_.]?([a-f]+)")
"""Letters that a commit may begin with."""


@dataclass(frozen=True, slots=True)
class _Component:
    """A number of a version, or the suffix that ends its numbers."""

    word: str
    digits: str


_ZERO = _Component("", "0")

_STAGE = -1
"""The place of a stage's number, beside those of the components."""


@dataclass(frozen=True, slots=True)
class _Date:
    """Three components that may be a date.

    Attributes:
        at: place of the first one.
        parts: their digits.
        long_year: whether the year has four digits.
        padded: whether day and month have two digits.
    """

    at: int
    parts: tuple[str, ...]
    long_year: bool
    padded: bool

    @property
    def has_zero(self) -> bool:
        """Whether a number has a leading zero, which is rare in a number that is no date."""
        return any(part[0] == "0" for part in self.parts)

    @property
    def starts_with_day(self) -> bool:
        """Whether the first number is too large for a month. A large second one is common: ``1.20.15``."""
        return int(self.parts[0]) > 12  # noqa: PLR2004  months

    def read(self) -> DateKeys:
        """Return its readings as a date."""
        return {name: (day, "") for name, day in read_date(*self.parts).items()}


_Kind = tuple[str, str]
"""The letters in front of a version's numbers, and their separator. Versions of different kinds are unordered."""


class _CounterKey(NamedTuple):
    """A place of a long number: numbers are ordered against those in the same place.

    ``may_be_commits``: they have seven digits or more, with the letters before them that may belong to a commit.
    """

    kind: _Kind
    place: int
    word: str
    length: int
    may_be_commits: bool


@dataclass(frozen=True, slots=True)
class _Version:
    """A parsed version. Trailing zeros are dropped, as a missing component is a zero.

    Attributes:
        date: the components that may be a date.
        has_date_form: whether components have the form of a date, whatever their values.
        counters: the places of long numbers, and their digits.
        placed: further readings as dates, which contradict the order of numbers if they fit all versions of the module.
    """

    kind: _Kind
    components: tuple[_Component, ...]
    stage: int
    stage_number: _Component
    date: _Date | None
    has_date_form: bool
    counters: tuple[tuple[_CounterKey, str], ...]
    placed: Mapping[DatePlace, PlacedDate] = field(compare=False)


class _KindDates:
    """The dates among a module's versions of one kind."""

    def __init__(self) -> None:
        self._dates: set[_Date] = set()
        self._has_others = False
        self._has_others_of_form = False

    def add(self, version: _Version) -> None:
        """Add a version."""
        if version.date is not None:
            self._dates.add(version.date)
        else:
            self._has_others = True
            self._has_others_of_form |= version.has_date_form

    def rule(self) -> "_DateRule | None":
        """Return the rule for the dates; None if the comparison of numbers is never contradicted."""
        # Without padding or a four-digit year, as in `27.9.20`, read numbers as dates only if every version of the kind
        # could be a date, and at least one has a leading zero or a first number over 12.
        has_day_or_zero = any(date.has_zero or date.starts_with_day for date in self._dates)
        unpadded_are_dates = not self._has_others and has_day_or_zero
        dates = [date for date in self._dates if unpadded_are_dates or date.padded or date.long_year]
        if not dates or _agree_with_numbers(dates):
            return None
        complete = not self._has_others and len(dates) == len(self._dates)
        certainly_dates = any(date.has_zero for date in dates) and all(date.long_year and date.padded for date in dates)
        # What has the form of a date, but is none, shows that its neighbours are numbers.
        has_evidence_of_dates = any(date.has_zero or date.starts_with_day or date.long_year for date in dates)
        may_be_plain_numbers = self._has_others_of_form or not has_evidence_of_dates
        if may_be_plain_numbers and not complete and not certainly_dates:
            return None
        as_numbers = not (certainly_dates and complete)
        return _DateRule(dates, unpadded_are_dates=unpadded_are_dates, as_numbers=as_numbers)


class VersionOrder:
    """The order of the versions of one product's module: they decide how those that may be dates are read."""

    def __init__(self, versions: Iterable[str]) -> None:
        """Find the readings that fit ``versions``, all versions of the module in use. They may be any texts."""
        self._versions = tuple(versions)
        kinds: dict[_Kind, _KindDates] = defaultdict(_KindDates)
        numbers: dict[_CounterKey, set[str]] = defaultdict(set)
        placed: dict[_Kind, list[Mapping[DatePlace, PlacedDate]]] = defaultdict(list)
        for version in map(_parse, self._versions):
            if version is not None:
                kinds[version.kind].add(version)
                placed[version.kind].append(version.placed)
                for key, digits in version.counters:
                    numbers[key].add(digits)
        self._dates = {kind: rule for kind, dates in kinds.items() if (rule := dates.rule()) is not None}
        self._counters = {key: _counter_order(key, digits) for key, digits in numbers.items()}
        self._placed = {kind: places for kind, dates in placed.items() if (places := fitting_places(dates))}

    def including(self, version: str) -> "VersionOrder":
        """Return the order of these versions and a further one."""
        parsed = _parse(version)
        if parsed is None:
            return self
        if not (self._dates or self._counters or self._placed or parsed.date or parsed.counters or parsed.placed):
            return self
        return VersionOrder((*self._versions, version))

    def compare(self, version: str, other: str) -> Order:
        """Return how ``version`` compares to ``other``; both are among the versions given to the constructor."""
        if version == other:
            return "same"
        one, two = _parse(version), _parse(other)
        if one is None or two is None or one.kind != two.kind:
            return "unordered"
        if one == two:
            return "same"
        order = self._compare_parsed(one, two)
        return "unordered" if self._is_contradicted(order, one, two) else order

    def newest_first(self, versions: Sequence[str]) -> tuple[list[str], str | None]:
        """Return versions with newer ones before older ones, and the one that is newer than all others, if one is.

        Versions between which no rule decides keep their order.
        """
        older: dict[str, int] = dict.fromkeys(versions, 0)
        newer = dict(older)
        for version, other in combinations(older, 2):
            order = self.compare(version, other)
            if order in {"older", "newer"}:
                above, below = (other, version) if order == "older" else (version, other)
                older[above] += 1
                newer[below] += 1
        ranked = sorted(older, key=lambda version: newer[version] - older[version])
        newest = next((version for version in ranked if older[version] == len(older) - 1), None)
        return ranked, newest

    def _is_contradicted(self, order: Order, one: _Version, two: _Version) -> bool:
        """Return whether a reading as dates, which fits all versions of the kind, contradicts an order."""
        places = self._placed.get(one.kind, ())
        if not places or order == "unordered":
            return False
        pairs = zip_longest(one.components, two.components, fillvalue=_ZERO)
        differing = next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), -1)
        for place in places:
            if place.start <= differing < place.start + place.width:
                value, other = one.placed[place].value, two.placed[place].value
                if value == other or (value < other) != (order == "older"):
                    return True
        return False

    def _compare_parsed(self, one: _Version, two: _Version) -> Order:
        """Compare different versions of one kind, without the further readings as dates."""
        start = 0
        rule = self._dates.get(one.kind)
        if rule is not None and (rule.applies(one.date) or rule.applies(two.date)):
            order = self._compare_dates(rule, one, two)
            if order != "same":
                return order
            start = one.date.at if one.date is not None else 0
        order = self._compare_components(one, two, start)
        if order == "same" and one.stage != two.stage:
            return "older" if one.stage < two.stage else "newer"
        return self._compare_numbers(one.kind, _STAGE, one.stage_number, two.stage_number) if order == "same" else order

    def _compare_dates(self, rule: "_DateRule", one: _Version, two: _Version) -> Order:
        """Compare versions up to the place of a date, if one contains one; ``same`` if they are equal up to there."""
        date, other = one.date, two.date
        if date is None or other is None or date.at != other.at or not (rule.applies(date) and rule.applies(other)):
            return "unordered"
        order = self._compare_components(one, two, 0, date.at)
        return rule.compare(date, other) if order == "same" and date.parts != other.parts else order

    def _compare_components(self, one: _Version, two: _Version, start: int, end: int | None = None) -> Order:
        """Compare components by the first ones that differ; ``same`` if none does."""
        pairs = zip_longest(one.components[start:end], two.components[start:end], fillvalue=_ZERO)
        for place, (component, against) in enumerate(pairs, start):
            if component != against:
                return self._compare_numbers(one.kind, place, component, against)
        return "same"

    def _compare_numbers(self, kind: _Kind, place: int, component: _Component, other: _Component) -> Order:
        """Compare two different components in one place."""
        if component.word != other.word or not component.digits or not other.digits:
            return "unordered"
        key, other_key = _counter_key(kind, place, component), _counter_key(kind, place, other)
        if key is not None and key == other_key:
            return self._counters[key].compare(component.digits, other.digits)
        if (key is None and other_key is None) or not component.digits.strip("0") or not other.digits.strip("0"):
            return _compare_places(component.digits, other.digits)
        return "unordered"


def compare_versions(version: str, other: str, among: Iterable[str] = ()) -> Order:
    """Return how ``version`` compares to ``other`` by the rules of this module's docstring. Both may be any strings.

    ``among`` are the other versions of the module that are in use. They decide how dates are read.
    """
    return VersionOrder((version, other, *among)).compare(version, other)


def can_be_ordered(version: str) -> bool:
    """Return whether a version has the shape that can be ordered against others."""
    return _parse(version) is not None


def equivalence_key(version: str) -> str:
    """Return a text that two versions share if, and only if, they are the same."""
    parsed = _parse(version)
    if parsed is None:
        return f"text {version}"
    return repr((parsed.kind, parsed.components, parsed.stage, parsed.stage_number))


@lru_cache(maxsize=16_384)
def _parse(version: str) -> _Version | None:
    match = _SHAPE.fullmatch(version) if len(version) <= MAX_LENGTH else None
    if match is None:
        return None
    letters = match["letters"]
    separator = next((mark for mark in "-_" if mark in match["numbers"]), ".")
    places = match["numbers"].split(separator)
    if (match["word"] or "").strip("-_.").lower() in MONTHS and _may_be_day(places[-1]):
        return None  # 27-Sep-2020
    components = [_Component("", digits) for digits in places]
    if match["word"] is not None:
        components.append(_Component(match["word"], match["word_number"]))
    while components and components[-1] == _ZERO:
        components.pop()
    places = places[: len(components)]
    kind = ("" if letters in {"v", "V"} else letters, separator)
    stage_number = _Component("", match["stage_number"] or "0")
    date = next((date for date in _date_windows(places) if date.read()), None)
    taken = range(date.at, date.at + len(date.parts)) if date is not None and date.long_year else range(0)
    numbers = [(each.word or ("" if at else letters), each.digits) for at, each in enumerate(components)]
    numbered = [*enumerate(components), (_STAGE, stage_number)]
    keys = [(_counter_key(kind, place, component), component.digits) for place, component in numbered]
    return _Version(
        kind,
        tuple(components),
        _STAGES.index((match["stage"] or "").lower()),
        stage_number,
        date,
        any(True for _ in _date_windows(places)),
        tuple((key, digits) for key, digits in keys if key is not None),
        placed_dates(numbers, taken),
    )


def _may_be_day(digits: str) -> bool:
    return len(digits) <= 2 and 1 <= int(digits) <= 31  # noqa: PLR2004  DD


def _counter_key(kind: _Kind, place: int, component: _Component) -> _CounterKey | None:
    """Return the place of a number that is long enough to be a date, a counter or a commit. Zero is none of them."""
    length = len(component.digits)
    letters = _HEX_LETTERS.fullmatch(component.word or (kind[0] if place == 0 else ""))
    may_be_commit = length + (len(letters[1]) if letters else 0) >= MIN_HASH_DIGITS
    if not component.digits.strip("0") or not (may_be_commit or length >= MIN_COUNTER_DIGITS):
        return None
    return _CounterKey(kind, place, component.word, length, may_be_commit)


def _counter_order(key: _CounterKey, numbers: Collection[str]) -> CounterOrder:
    return CounterOrder(numbers, may_be_commits=key.may_be_commits)


def _date_windows(places: Sequence[str]) -> Iterator[_Date]:
    """Yield three numbers each with the form of a date, whatever their values."""
    for at in range(len(places) - 2):
        parts = tuple(places[at : at + 3])
        first, second, third = map(len, parts)
        short_year = third == 2 and at == 0 and len(places) == 3  # noqa: PLR2004  digits; places
        if first <= 2 and second <= 2 and (third == 4 or short_year):  # noqa: PLR2004  digits
            yield _Date(at, parts, third == 4, first == second == 2)  # noqa: PLR2004  digits


class _DateRule:
    """The order of versions of one kind that may be dates, where readings contradict each other."""

    def __init__(self, dates: Sequence[_Date], *, unpadded_are_dates: bool, as_numbers: bool) -> None:
        self._keys = {date.parts: date.read() for date in dates}
        self._readings = common_readings(self._keys.values())
        self._unpadded_are_dates = unpadded_are_dates
        self._as_numbers = as_numbers

    def applies(self, date: _Date | None) -> bool:
        """Return whether the rule orders this part of a version."""
        return date is not None and (self._unpadded_are_dates or date.padded or date.long_year)

    def compare(self, date: _Date, other: _Date) -> Order:
        """Compare different dates in one place."""
        if not self._readings:
            return "unordered"
        further = (_compare_parts(date.parts, other.parts),) if self._as_numbers else ()
        return compare_readings(self._keys[date.parts], self._keys[other.parts], self._readings, *further)


def _agree_with_numbers(dates: Sequence[_Date]) -> bool:
    by_place: dict[int, dict[str, DateKeys]] = defaultdict(dict)
    for date in dates:
        by_place[date.at]["/".join(date.parts)] = date.read()
    return all(
        readings_agree(keys, lambda one, other: _compare_parts(one.split("/"), other.split("/")))
        for keys in by_place.values()
    )


def _compare_parts(parts: Sequence[str], other: Sequence[str]) -> Order:
    return next((_compare_places(*pair) for pair in zip(parts, other, strict=True) if pair[0] != pair[1]), "same")


def _compare_places(digits: str, other: str) -> Order:
    """Compare two different numbers where both readings agree: as numbers, and after a leading zero as fractions."""
    zero, other_zero = not digits.strip("0"), not other.strip("0")
    if zero or other_zero:
        return "unordered" if zero and other_zero else "older" if zero else "newer"
    order = compare_digits(digits, other)
    if digits[0] == "0" or other[0] == "0":
        one, two = digits.rstrip("0"), other.rstrip("0")
        fraction = "unordered" if one == two else "older" if one < two else "newer"
        return order if order == fraction else "unordered"
    return order
