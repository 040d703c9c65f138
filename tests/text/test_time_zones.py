"""Time zones: IANA names with the closest one for a typo, and times in UTC that are shown in a zone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import auditor
from auditor.errors import SettingsError
from auditor.text.time_zones import parse_time_zone, show_time, show_times
from tests.integration.test_audit import account_table, settings_for


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("Asia/Shangai", "Asia/Shanghai"),
        ("asia/shanghai", "Asia/Shanghai"),
        ("Shanghai", "Asia/Shanghai"),
        ("America/New York", "America/New_York"),
        ("Europe/Berln", "Europe/Berlin"),
    ],
)
def test_closest_zone_is_named(tmp_path: Path, typo: str, meant: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^settings: time_zone: '{typo}' is no time zone; did you mean {meant}\\?$"
    ):
        settings_for(tmp_path, account_table("https://example.com/", tmp_path), time_zone=typo)
    settings = settings_for(tmp_path, account_table("https://example.com/", tmp_path), time_zone=meant)
    assert isinstance(settings, auditor.Settings)
    assert settings.time_zone == meant


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../../etc/passwd", "Asia", "\0", "灯", "x" * 10_000])
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no time zone; "):
        parse_time_zone(name)


def test_a_very_long_name_is_neither_compared_nor_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(name: str, *_: object, **__: object) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr("difflib.get_close_matches", compare)
    for length, quoted in ((64, "x" * 64 + "'"), (65, "x" * 64 + "'…"), (1_000_000, "x" * 64 + "'…")):
        with pytest.raises(ValueError, match="is no time zone") as refused:
            parse_time_zone("x" * length)
        assert str(refused.value).startswith(f"'{quoted} is no time zone; give one such as")
    assert compared == ["x" * 64]


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["Asia/Kolkata", "America/New_York"]))  # noqa: DTZ001  naive, in UTC
def test_shown_time_is_the_same_moment(moment: datetime, name: str) -> None:
    zone = parse_time_zone(name)
    shown = datetime.fromisoformat(str(show_time(moment, zone)))
    assert shown == moment.replace(tzinfo=UTC, microsecond=0)
    assert shown.utcoffset() == moment.replace(tzinfo=UTC).astimezone(ZoneInfo(name)).utcoffset() != timedelta(0)
    assert show_time(moment, UTC) is moment


def test_times_of_a_sentence_are_shown_and_nothing_else() -> None:
    zone = parse_time_zone("Asia/Shanghai")
    sentence = (
        "started: 2026-11-22 18:00 UTC, ended: 2026-11-22T18:30:01.123Z; 20261122T180000Z-nightly, 2026-11-22 18:00"
    )
    assert show_times(sentence, zone) == (
        "started: 2026-11-23 02:00+08:00, ended: 2026-11-23 02:30:01+08:00; 20261122T180000Z-nightly, 2026-11-22 18:00"
    )
    assert show_times(sentence, UTC) == sentence
    assert show_times("9999-99-99 99:99 UTC", zone) == "9999-99-99 99:99 UTC"
    assert show_time("none", zone) == "none"
    assert show_time(None, zone) is None
