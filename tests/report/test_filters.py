"""Words and numbers of a page: cut, harmless, and never more than is true."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auditor.report.filters import age, clock, day, moment, number, part, shown


@given(st.text(), st.integers(2, 60))
def test_text_is_one_printable_line_of_bounded_length(text: str, most: int) -> None:
    line = shown(text, most)
    assert len(line) <= max(most, len("(empty)"))
    assert line
    assert line.isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40))
def test_short_printable_text_stays_as_it_is(text: str) -> None:
    assert shown(text, 40) == text


def test_what_is_cut_says_so_and_nothing_is_told() -> None:
    assert shown("a" * 10_000_000, 10) == "aaaaaaaaa…"
    assert shown("abc\x00\u202e", 40) == "abc\\x00\\u202e"
    assert shown("") == shown(" ") == "(empty)"
    assert shown(None) == "unknown"


@given(st.integers(0, 10**9), st.integers(1, 10**9))
@example(999_999_972, 1)
def test_a_part_is_all_or_nothing_only_if_it_is(some: int, rest: int) -> None:
    share = some / (some + rest)
    assert part(share) != "100%"
    assert (part(share) == "0%") == (some == 0)
    assert part(1.0) == "100%"
    if part(share).startswith("<"):
        assert share < 0.001
    else:
        assert 0 <= share - float(part(share).rstrip("%")) / 100 < 0.001 + 1e-6


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234567, "1,234,567"), (8.84, "8.8"), (10.0, "10"), (412.5, "412")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "less than a minute"), (60, "1 minute"), (3 * 3600 + 5, "3 hours"), (47 * 3600, "47 hours"), (9e5, "10 days")],
)
def test_ages(seconds: float, text: str) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert age(now - timedelta(seconds=seconds), now) == f"{text} old"
    assert "future" in age(now + timedelta(seconds=1), now)


def test_times_of_a_manifest_that_are_none_are_told_as_such() -> None:
    assert clock(moment("2026-11-22T02:00:00.000Z")) == "22 Nov 2026, 02:00 UTC"
    assert clock(moment("2026-11-22T02:00:00")) == "22 Nov 2026, 02:00 UTC"
    assert moment(None) is None
    assert clock(moment("<b>")) == "an unknown time"
    assert day("<b>") == "<b>"
    assert day("2026-11-02T02:00:00.000Z") == "2 Nov"
