"""The order of two versions of one module. Versions are ordered only where a documented rule orders them.

Firmware versions are not semantic versions: vendors write what they like. A version is parsed as

    [letters] numbers [suffix]        V1.2.3   2.03   R12   20240115   2024-01-15   1.4.2-hotfix2   1.0rc1   FW_1.2

A version of another shape is unordered against every other version. For versions of this shape:

1. The letters must be equal, including their case. Only ``v``, ``V`` and no letters are equal (``v1.2`` and ``1.2``).
2. Numbers are joined by dots, or three and more by ``-`` or by ``_``; the separator must be equal in both versions.
   Numbers are compared from the left (``1.9`` is older than ``1.10``). Missing numbers are zeros (``1.2`` is older
   than ``1.2.1``, and the same as ``1.2.0``).
3. A number with a leading zero may be a number or the digits of a decimal fraction. It is ordered where both readings
   agree (``2.03`` is older than ``2.10``), and otherwise not (``2.03`` and ``2.1``, ``2.03`` and ``2.3``).
4. A number of six digits or more may be a date or a counter. It is ordered against numbers of equal length and zero
   (``20240115`` and ``20240116``, but not ``20240115`` and ``1.2.3``).
5. ``alpha``, ``beta`` and ``rc`` come in this order before the version without a suffix, as in semantic versioning and
   PEP 440. Their case does not matter, nor ``-``, ``_`` or ``.`` around them. Equal words are ordered by their number.
6. Any other suffix, ``-word2`` or ``-2``, is ordered against the same word with another number (``-hotfix1`` and
   ``-hotfix2``), and against no other suffix behind the same numbers. A hotfix comes after the version that it fixes,
   but semantic versioning puts it before.

Only ASCII letters and digits count. By these rules "older" is a strict partial order, and "same" is an equivalence that
it respects: components are compared lexicographically, and the numbers of one component are partially ordered.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal

Order = Literal["older", "same", "newer", "unordered"]
"""How a version compares to another one. ``same``: equal strings, or such as ``1.2``, ``v1.2`` and ``1.2.0``."""

MIN_COUNTER_DIGITS = 6
"""A number with at least this many digits may be a date. It is ordered against numbers of equal length only."""

_SHAPE = re.compile(
    r"(?P<letters>(?:[A-Za-z]+[-_. ]?)?)"
    r"(?P<numbers>[0-9]+(?:\.[0-9]+)*|[0-9]+(?:-[0-9]+){2,}|[0-9]+(?:_[0-9]+){2,})"
    r"(?:[-_.]?(?P<stage>(?i:alpha|beta|rc))[-_.]?(?P<stage_number>[0-9]*)"
    r"|(?P<word>[-_.][A-Za-z]+[-_.]?|[-_](?=[0-9]))(?P<word_number>[0-9]*))?",
    re.ASCII,
)

_STAGES = ("alpha", "beta", "rc", "")


@dataclass(frozen=True, slots=True)
class _Component:
    """A number of a version, or the suffix that ends its numbers."""

    word: str
    digits: str


_ZERO = _Component("", "0")


@dataclass(frozen=True, slots=True)
class _Version:
    """A parsed version. Trailing zeros are dropped, as a missing component is a zero."""

    kind: tuple[str, str]
    components: tuple[_Component, ...]
    stage: int
    stage_number: _Component


def compare_versions(version: str, other: str) -> Order:
    """Return how ``version`` compares to ``other`` by the rules of this module's docstring. Both may be any strings."""
    if version == other:
        return "same"
    one, two = _parse(version), _parse(other)
    if one is None or two is None or one.kind != two.kind:
        return "unordered"
    if one == two:
        return "same"
    for place, against in zip_longest(one.components, two.components, fillvalue=_ZERO):
        if place != against:
            return _compare_components(place, against)
    if one.stage != two.stage:
        return "older" if one.stage < two.stage else "newer"
    return _compare_components(one.stage_number, two.stage_number)


def can_be_ordered(version: str) -> bool:
    """Return whether a version has the shape that can be ordered against others."""
    return _parse(version) is not None


def equivalence_key(version: str) -> str:
    """Return a text that two versions share if, and only if, they are the same."""
    parsed = _parse(version)
    return f"text {version}" if parsed is None else repr(parsed)


@lru_cache(maxsize=16_384)
def _parse(version: str) -> _Version | None:
    match = _SHAPE.fullmatch(version)
    if match is None:
        return None
    letters, numbers = match["letters"], match["numbers"]
    separator = next((mark for mark in "-_" if mark in numbers), ".")
    components = [_Component("", digits) for digits in numbers.split(separator)]
    if match["word"] is not None:
        components.append(_Component(match["word"], match["word_number"]))
    while components and components[-1] == _ZERO:
        components.pop()
    return _Version(
        ("" if letters in {"v", "V"} else letters, separator),
        tuple(components),
        _STAGES.index((match["stage"] or "").lower()),
        _Component("", match["stage_number"] or "0"),
    )


def _compare_components(component: _Component, other: _Component) -> Order:
    if component.word == other.word:
        if _is_less(component.digits, other.digits):
            return "older"
        if _is_less(other.digits, component.digits):
            return "newer"
    return "unordered"


def _is_less(digits: str, other: str) -> bool:
    """Return whether a number is less than another one in all its possible readings."""
    if not digits or not other.strip("0"):  # no number, or compared to zero
        return False
    if not digits.strip("0"):
        return True
    if max(len(digits), len(other)) >= MIN_COUNTER_DIGITS:  # compared as text: a number may have any length
        return len(digits) == len(other) and digits < other
    less = int(digits) < int(other)
    if digits[0] == "0" or other[0] == "0":
        return less and digits.rstrip("0") < other.rstrip("0")  # also as fractions
    return less
