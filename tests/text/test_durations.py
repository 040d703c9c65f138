"""Durations and deadlines as people write them, around clock changes too."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.text.durations import parse_deadline, parse_duration

HOUR = 3600

clocks = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
moments = st.floats(min_value=1_767_225_600, max_value=1_830_297_600)  # the years 2026 and 2027

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"]

SetZone = Callable[[str], None]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetZone]:
    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def local(text: str, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(fold=fold).timestamp()


def shown(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def is_skipped(moment: float, text: str) -> bool:
    """Return whether the clock skipped a time of day on the day of a moment."""
    local_time = datetime.fromisoformat(f"{shown(moment)[:10]} {text}")
    return shown(local_time.timestamp()) != str(local_time)


@pytest.mark.parametrize("name", ZONES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(now=moments, clock=clocks)
def test_a_time_of_day_is_within_25_hours_and_on_that_clock_time(
    zone: SetZone, name: str, now: float, clock: tuple[int, int, int]
) -> None:
    zone(name)
    text = "{:02}:{:02}:{:02}".format(*clock)
    at = parse_deadline(text, now)
    assert now < at <= now + 25 * HOUR
    assert shown(at).endswith(text) or is_skipped(at, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(offset=st.floats(-30 * HOUR, 30 * HOUR), clock=clocks, day=st.sampled_from(["2026-03-29", "2026-10-25"]))
def test_a_time_of_day_is_within_25_hours_around_clock_changes(
    zone: SetZone, offset: float, clock: tuple[int, int, int], day: str
) -> None:
    zone("Europe/Berlin")
    now = local(f"{day}T02:00") + offset
    text = "{:02}:{:02}:{:02}".format(*clock)
    at = parse_deadline(text, now)
    assert now < at <= now + 25 * HOUR
    assert shown(at).endswith(text) or is_skipped(at, text)


@pytest.mark.parametrize(
    ("now", "text", "hours"),
    [
        ("2026-11-22T05:00", "06:00", 1),
        ("2026-11-22T06:00", "06:00", 24),
        ("2026-11-22T22:30", "6:00", 7.5),
        ("2026-03-28T22:00", "06:00", 7),  # the clock goes forward
        ("2026-10-24T22:00", "06:00", 9),  # the clock goes back
        ("2026-10-24T06:00", "06:00:00", 25),
        ("2026-03-29T00:00", "02:30", 2.5),  # 02:30 does not exist, it is 03:30
        ("2026-11-22T05:00", " 2026-11-23T06:00 ", 25),
        ("2026-11-22T05:00", "2026-11-22T06:00+02:00", 0),
        ("2026-11-22T05:00", "2026-11-22T05:00Z", 1),
    ],
)
def test_hours_until_a_deadline_in_berlin(zone: SetZone, now: str, text: str, hours: float) -> None:
    zone("Europe/Berlin")
    moment = local(now)
    if hours == 0:
        with pytest.raises(ValueError, match="is in the past"):
            parse_deadline(text, moment)
    else:
        assert parse_deadline(text, moment) == moment + hours * HOUR


def test_in_an_hour_that_occurs_twice_the_next_one_counts(zone: SetZone) -> None:
    zone("Europe/Berlin")
    first, second = local("2026-10-25T02:30"), local("2026-10-25T02:30", fold=1)
    assert second == first + HOUR
    assert parse_deadline("02:45", first) == first + 15 * 60
    assert parse_deadline("02:45", second) == second + 15 * 60
    assert parse_deadline("02:15", first) == second - 15 * 60
    assert parse_deadline("02:15", second) == local("2026-10-26T02:15")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "6",
        "25:00",
        "24:00",
        "06:60",
        "06:00:60",
        "soon",
        "2026-13-01",
        "2001-01-01",
        "06.00",
        "-1:00",
        "9999-99-99",
        "0001-01-01T00:00",
    ],
)
def test_an_invalid_or_past_deadline_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ValueError, match="give a time of day such as 06:00, or a date and time such as"):
        parse_deadline(text, 1_795_312_800.0)


@given(st.text(max_size=12))
def test_any_text_is_a_deadline_in_the_future_or_refused(text: str) -> None:
    try:
        at = parse_deadline(text, 1_795_312_800.0)
    except ValueError:
        return
    assert at > 1_795_312_800.0


@given(st.tuples(st.integers(0, 9999), st.integers(0, 99_999), st.integers(0, 999_999)).filter(any))
def test_a_duration_is_the_sum_of_its_parts(parts: tuple[int, int, int]) -> None:
    hours, minutes, seconds = parts
    text = "".join(f"{number}{unit}" for number, unit in zip(parts, "hms", strict=True) if number)
    assert parse_duration(text) == timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()


@pytest.mark.parametrize(
    ("text", "seconds"), [("4h", 14400), ("90m", 5400), ("45s", 45), ("1h30m", 5400), (" 2H ", 7200)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "0h0m", "30m1h", "1h1d", "-1h", "1.5h", "h", "1 h", "99999h", "1h1h"])
def test_an_invalid_duration_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ValueError, match="give one such as 30d, 4h, 90m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["5", " 90 ", "1234567"])
def test_a_number_without_a_unit_is_refused_with_one(text: str) -> None:
    with pytest.raises(ValueError, match=f"has no unit; add one, such as {text.strip()}h or "):
        parse_duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_above_0_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds > 0
