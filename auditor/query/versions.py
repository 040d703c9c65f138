"""Which of two versions of one module is older: only where a documented rule says so, and else they are unordered.

Firmware versions are not semantic versions, they are whatever a vendor wrote. A version is read as

    [letters] numbers [suffix]        V1.2.3   2.03   R12   20240115   2024-01-15   1.4.2-hotfix2   1.0rc1   FW_1.2

and what is not of that shape is unordered against all but itself. Of what is:

1. The letters must be the same, to the case; only ``v``, ``V`` and none are one (``v1.2`` and ``1.2``).
2. Numbers are joined by dots, or three and more by ``-`` or by ``_``, which must be the same in both; they are
   compared from the left, as numbers (``1.9`` is older than ``1.10``), and missing ones are zeros (``1.2`` is older
   than ``1.2.1``, and the same as ``1.2.0``).
3. A number with a zero in front may be meant as a number or as the digits of a decimal fraction: it is ordered where
   both say the same (``2.03`` is older than ``2.10``), and else not (``2.03`` and ``2.1``, ``2.03`` and ``2.3``).
4. A number of six digits or more may be a date or a counter: it is ordered against numbers of as many digits, and
   zero (``20240115`` and ``20240116``, but not ``20240115`` and ``1.2.3``).
5. ``alpha``, ``beta`` and ``rc``, in any case and with or without ``-``, ``_`` or ``.`` around, come in this order
   before the version without a suffix, as semantic versioning and PEP 440 both have it; those of one word by their
   number.
6. Any other suffix, ``-word2`` or ``-2``, is ordered against the same word with another number (``-hotfix1`` and
   ``-hotfix2``), and against nothing else behind the same numbers: a hotfix comes after what it mends, and semantic
   versioning says before.

Only ASCII letters and digits count. By these rules "older" is a strict partial order, and "same" an equivalence that it
respects: places are compared lexicographically, and in one place the numbers are partially ordered.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal

Order = Literal["older", "same", "newer", "unordered"]
"""How a version stands to another one. ``same``: equal strings, or such as ``1.2``, ``v1.2`` and ``1.2.0``."""


COUNTER_DIGITS = 6
"""From so many digits on a number may be a date, and is ordered against numbers of as many digits alone."""


_SHAPE = re.compile(
    r"(?P<letters>(?:[A-Za-z]+[-_. ]?)?)"
    r"(?P<numbers>[0-9]+(?:\.[0-9]+)*|[0-9]+(?:-[0-9]+){2,}|[0-9]+(?:_[0-9]+){2,})"
    r"(?:[-_.]?(?P<stage>(?i:alpha|beta|rc))[-_.]?(?P<of_stage>[0-9]*)"
    r"|(?P<word>[-_.][A-Za-z]+[-_.]?|[-_](?=[0-9]))(?P<of_word>[0-9]*))?",
    re.ASCII,
)


_STAGES = ("alpha", "beta", "rc", "")


@dataclass(frozen=True, slots=True)
class _Place:
    """A number of a version, or the suffix that ends its numbers: nothing stands behind that."""

    word: str
    digits: str


_ZERO = _Place("", "0")


@dataclass(frozen=True, slots=True)
class _Version:
    """A version as it is compared. Zeros at the end are left out: every place that is missing is one."""

    kind: tuple[str, str]
    places: tuple[_Place, ...]
    stage: int
    of_stage: _Place


def compare_versions(version: str, other: str) -> Order:
    """How ``version`` stands to ``other``, of the same module: older, newer, the same, or unordered.

    The rules are in this module's docstring. Both may be any strings.
    """
    if version == other:
        return "same"
    one, two = _read(version), _read(other)
    if one is None or two is None or one.kind != two.kind:
        return "unordered"
    if one == two:
        return "same"
    for place, against in zip_longest(one.places, two.places, fillvalue=_ZERO):
        if place != against:
            return _order(place, against)
    if one.stage != two.stage:
        return "older" if one.stage < two.stage else "newer"
    return _order(one.of_stage, two.of_stage)


def can_be_ordered(version: str) -> bool:
    """Whether a version is of the shape that is ordered against others at all."""
    return _read(version) is not None


def common_form(version: str) -> str:
    """A text that all versions which are the same have in common, and no other has."""
    read = _read(version)
    return f"spelled {version}" if read is None else repr(read)


@lru_cache(maxsize=16_384)
def _read(version: str) -> _Version | None:
    found = _SHAPE.fullmatch(version)
    if found is None:
        return None
    letters, numbers = found["letters"], found["numbers"]
    between = next((mark for mark in "-_" if mark in numbers), ".")
    places = [_Place("", digits) for digits in numbers.split(between)]
    if found["word"] is not None:
        places.append(_Place(found["word"], found["of_word"]))
    while places and places[-1] == _ZERO:
        places.pop()
    return _Version(
        ("" if letters in {"v", "V"} else letters, between),
        tuple(places),
        _STAGES.index((found["stage"] or "").lower()),
        _Place("", found["of_stage"] or "0"),
    )


def _order(place: _Place, other: _Place) -> Order:
    if place.word == other.word:
        if _before(place.digits, other.digits):
            return "older"
        if _before(other.digits, place.digits):
            return "newer"
    return "unordered"


def _before(digits: str, other: str) -> bool:
    """Whether a number is less than another one in every way that it may be meant."""
    if not digits or not other.strip("0"):  # no number at all, or nothing is less than zero
        return False
    if not digits.strip("0"):
        return True
    if max(len(digits), len(other)) >= COUNTER_DIGITS:  # never made a number, however long
        return len(digits) == len(other) and digits < other
    less = int(digits) < int(other)
    if digits[0] == "0" or other[0] == "0":
        return less and digits.rstrip("0") < other.rstrip("0")  # as fractions too
    return less
