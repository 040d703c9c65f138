"""Text and numbers of a page: bounded, harmless, and 100% only for all."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auditor.report.filters import (
    display_text,
    format_age,
    format_day,
    format_number,
    format_percent,
    format_since,
    format_starts,
    format_time,
)
from auditor.text.formatting import parse_manifest_time


@given(st.text(), st.integers(2, 60))
def test_text_is_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    line = display_text(text, limit)
    assert len(line) <= max(limit, len("(empty)"))
    assert line
    assert line.isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40))
def test_short_printable_text_is_unchanged(text: str) -> None:
    assert display_text(text, 40) == text


def test_cut_text_has_an_ellipsis_and_empty_text_is_named() -> None:
    assert display_text("a" * 10_000_000, 10) == "aaaaaaaaa…"
    assert display_text("abc\x00\u202e", 40) == "abc\\x00\\u202e"
    assert display_text("") == display_text(" ") == "(empty)"
    assert display_text(None) == "unknown"


@given(st.integers(0, 10**9), st.integers(1, 10**9))
@example(999_999_972, 1)
@example(250_000_000, 250_000_001)
def test_only_a_complete_share_is_100_percent(some: int, rest: int) -> None:
    share = some / (some + rest)
    assert format_percent(share) != "100%"
    assert (format_percent(share) == "0%") == (some == 0)
    assert format_percent(1.0) == "100%"
    if format_percent(share).startswith("<"):
        assert share < 0.001
    else:
        assert abs(share - float(format_percent(share).rstrip("%")) / 100) < 0.001 + 1e-6


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234567, "1,234,567"), (8.84, "8.8"), (10.0, "10"), (412.5, "412")]
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "1 min"), (90, "1 min"), (3 * 3600, "3 h"), (47 * 3600 + 3599, "47 h"), (9e5, "10 days")],
)
def test_ages(seconds: float, text: str) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert format_age(now - timedelta(seconds=seconds), now) == f"{text} old"
    assert "future" in format_age(now + timedelta(seconds=1), now)


def test_times_that_cannot_be_parsed_are_named() -> None:
    assert format_time(parse_manifest_time("2026-11-22T02:00:00.000Z")) == "22 Nov 2026, 02:00 UTC"
    assert format_time(parse_manifest_time("2026-11-22T02:00:00")) == "22 Nov 2026, 02:00 UTC"
    assert parse_manifest_time(None) is None
    assert format_time(parse_manifest_time("2026-11-22T02:00:00+01:00")) == "22 Nov 2026, 01:00 UTC"
    for text in ("<b>", "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+14:00"):
        assert format_time(parse_manifest_time(text)) == "an unknown time"
        assert format_day(text)
    assert format_day("<b>") == "<b>"
    assert format_day("2026-11-02T02:00:00.000Z") == "2 Nov"


@pytest.mark.parametrize(
    ("earlier", "later", "text"),
    [
        ("2026-11-30T02:00:00.000Z", "2026-12-01T02:00:00.000Z", "30 Nov"),
        ("2026-12-01T02:00:00.000Z", "2026-12-01T14:30:00.000Z", "02:00 UTC"),
        ("2026-12-01T02:00:07.000Z", "2026-12-01T02:00:31.000Z", "02:00:07 UTC"),
        ("<b>", "2026-12-01T02:00:31.000Z", "<b>"),
    ],
)
def test_an_earlier_run_of_the_same_day_has_its_time(earlier: str, later: str, text: str) -> None:
    assert format_since(earlier, later) == text


def test_runs_of_one_day_are_told_apart() -> None:
    starts = ["2026-11-30T02:00:00Z", "2026-12-01T02:00:00Z", "2026-12-01T14:30:07Z", "2026-12-01T14:30:31Z", "<b>"]
    assert format_starts(starts) == ["30 Nov", "1 Dec, 02:00", "1 Dec, 14:30:07", "1 Dec, 14:30:31", "<b>"]


@given(st.lists(st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)), unique=True, max_size=30))  # noqa: DTZ001  in UTC
def test_starts_that_differ_by_a_second_have_different_texts(times: list[datetime]) -> None:
    seconds = sorted({time.replace(microsecond=0) for time in times})
    assert len(set(format_starts([f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in seconds]))) == len(seconds)
