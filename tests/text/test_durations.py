"""Times as people write them: always in the future, on that clock time, whatever the clock does at night."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import UsageError
from auditor.text.durations import next_time, seconds_of

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
    """Whether the clock was put forward over a time of day on the day of a moment."""
    wanted = datetime.fromisoformat(f"{shown(moment)[:10]} {text}")
    return shown(wanted.timestamp()) != str(wanted)


@pytest.mark.parametrize("name", ZONES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(now=moments, clock=clocks)
def test_the_next_time_of_day_is_in_the_future_within_25_hours_and_on_that_clock_time(
    zone: SetZone, name: str, now: float, clock: tuple[int, int, int]
) -> None:
    zone(name)
    text = "{:02}:{:02}:{:02}".format(*clock)
    at = next_time(text, now)
    assert now < at <= now + 25 * HOUR
    assert shown(at).endswith(text) or is_skipped(at, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(offset=st.floats(-30 * HOUR, 30 * HOUR), clock=clocks, day=st.sampled_from(["2026-03-29", "2026-10-25"]))
def test_so_it_is_around_the_nights_when_the_clock_changes(
    zone: SetZone, offset: float, clock: tuple[int, int, int], day: str
) -> None:
    zone("Europe/Berlin")
    now = local(f"{day}T02:00") + offset
    text = "{:02}:{:02}:{:02}".format(*clock)
    at = next_time(text, now)
    assert now < at <= now + 25 * HOUR
    assert shown(at).endswith(text) or is_skipped(at, text)


@pytest.mark.parametrize(
    ("now", "text", "hours"),
    [
        ("2026-11-22T05:00", "06:00", 1),
        ("2026-11-22T06:00", "06:00", 24),
        ("2026-11-22T22:30", "6:00", 7.5),
        ("2026-03-28T22:00", "06:00", 7),  # a night of an hour less
        ("2026-10-24T22:00", "06:00", 9),  # a night of an hour more
        ("2026-10-24T06:00", "06:00:00", 25),
        ("2026-03-29T00:00", "02:30", 2.5),  # there is none: half past two is half past three
        ("2026-11-22T05:00", " 2026-11-23T06:00 ", 25),
        ("2026-11-22T05:00", "2026-11-22T06:00+02:00", 0),
        ("2026-11-22T05:00", "2026-11-22T05:00Z", 1),
    ],
)
def test_a_time_is_so_many_hours_away_in_berlin(zone: SetZone, now: str, text: str, hours: float) -> None:
    zone("Europe/Berlin")
    moment = local(now)
    if hours == 0:
        with pytest.raises(UsageError, match="is over"):
            next_time(text, moment)
    else:
        assert next_time(text, moment) == moment + hours * HOUR


def test_in_the_hour_that_comes_twice_the_next_one_is_meant(zone: SetZone) -> None:
    zone("Europe/Berlin")
    first, second = local("2026-10-25T02:30"), local("2026-10-25T02:30", fold=1)
    assert second == first + HOUR
    assert next_time("02:45", first) == first + 15 * 60
    assert next_time("02:45", second) == second + 15 * 60
    assert next_time("02:15", first) == second - 15 * 60
    assert next_time("02:15", second) == local("2026-10-26T02:15")


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
def test_what_is_no_time_or_over_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(UsageError, match="give a time of day such as 06:00, or a date and time such as"):
        next_time(text, 1_795_312_800.0)


@given(st.text(max_size=12))
def test_any_text_is_a_time_in_the_future_or_refused(text: str) -> None:
    try:
        at = next_time(text, 1_795_312_800.0)
    except UsageError:
        return
    assert at > 1_795_312_800.0


@given(st.tuples(st.integers(0, 9999), st.integers(0, 99_999), st.integers(0, 999_999)).filter(any))
def test_a_length_is_the_sum_of_its_parts(parts: tuple[int, int, int]) -> None:
    hours, minutes, seconds = parts
    text = "".join(f"{number}{unit}" for number, unit in zip(parts, "hms", strict=True) if number)
    assert seconds_of(text) == timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()


@pytest.mark.parametrize(
    ("text", "seconds"), [("4h", 14400), ("90m", 5400), ("45s", 45), ("1h30m", 5400), (" 2H ", 7200)]
)
def test_a_length_as_people_write_it(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "0h0m", "5", "30m1h", "1h1d", "-1h", "1.5h", "h", "1 h", "99999h", "1h1h"]
)
def test_what_is_no_length_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(UsageError, match="give one such as 4h, 90m or 1h30m"):
        seconds_of(text)


@given(st.text(max_size=12))
def test_any_text_is_a_length_above_0_or_refused(text: str) -> None:
    try:
        seconds = seconds_of(text)
    except UsageError:
        return
    assert seconds > 0
