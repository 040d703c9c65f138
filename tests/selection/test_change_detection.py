"""Which devices are queried by their connection states, in every form of the two times, against their whole history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from random import Random
from typing import Any, get_args
from zoneinfo import ZoneInfo

import duckdb
import orjson
import pytest

from auditor.client.decoders import DEVICE_STATES_RESPONSE
from auditor.client.parsers import parse_connection_states
from auditor.client.responses import parse_response
from auditor.models import ChangeDetection, Device
from auditor.runs.selection_info import LearnedOffset
from auditor.selection.change_detection import IncrementalRule, create_reasons, learn_offset
from auditor.selection.connectivity import _encode_states, write_states
from auditor.simulator.forms import TimeForm, time_member

DEVICES = 600
FORMS: tuple[TimeForm, ...] = get_args(TimeForm)
SEEDS = len(FORMS)  # so that each form of one time meets each form of the other
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
MARGIN = 15 * MINUTE
"""Milliseconds before a result from which on a connection counts."""

ZONES: tuple[tzinfo, ...] = (
    timezone(timedelta(hours=8)),
    UTC,
    ZoneInfo("America/New_York"),
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("Australia/Lord_Howe"),  # daylight saving of half an hour
    timezone(timedelta(hours=5, minutes=45)),
    timezone(-timedelta(hours=12)),
    timezone(timedelta(hours=14)),
    timezone(-timedelta(hours=3, minutes=30)),
)
MOMENTS = (  # in New York, the clock was changed on 2025-03-09 and on 2025-11-02; in Berlin on 03-30 and 10-26
    datetime(2025, 3, 10, 9, tzinfo=UTC),
    datetime(2025, 3, 30, 4, tzinfo=UTC),
    datetime(2025, 7, 1, 23, tzinfo=UTC),
    datetime(2025, 10, 26, 3, 30, tzinfo=UTC),
    datetime(2025, 11, 2, 12, tzinfo=UTC),
)
STRICT, RECONNECTED = (IncrementalRule(kind, None, 0.0) for kind in ("strict", "reconnected"))


@dataclass(frozen=True)
class History:
    """A device: its result, and when it was online, in milliseconds since 1970; the last interval may have no end."""

    name: str
    status: str
    read_at: int
    online: tuple[tuple[int, int | None], ...]
    state: str | None
    changed: int
    last_online: int | None

    def was_online_after(self, moment: int) -> bool:
        return any(end is None or end > moment for _, end in self.online)

    def came_online_after(self, moment: int) -> bool:
        return any(start > moment for start, _ in self.online)

    def may_have_changed(self, rule: ChangeDetection, since: int) -> bool:
        """Return whether its versions can differ from its result, by the assumption of a rule."""
        if (self.state is None) != (self.status == "not_found"):
            return True
        return self.was_online_after(since) if rule == "strict" else self.came_online_after(since)


def make_history(random: Random, index: int, now: int, *, last_seen: bool) -> History:
    """Make a device; ``last_seen``: its last-online time is when it was last seen, and not when it came online."""
    read_at = now - random.choice((HOUR, DAY, 7 * DAY)) - random.randrange(HOUR)
    kind, name = random.random(), f"device-{index}"
    created = now - 400 * DAY
    if kind < 0.03:
        return History(name, "not_found", read_at, (), None, created, None)
    if kind < 0.06:
        return History(name, "empty", read_at, (), "UNACTIVE", created, None)
    moments = sorted(
        now - 1 - round(random.choice((2 * HOUR, 2 * DAY, 30 * DAY, 300 * DAY)) * random.random())
        for _ in range(2 * random.randint(1, 4))
    )
    moments = sorted(set(moments))
    online: list[tuple[int, int | None]] = [
        (start, end) for start, end in zip(moments[::2], [*moments[1::2], None], strict=False)
    ]
    if online[-1][1] is not None and kind > 0.6:
        online[-1] = (online[-1][0], None)
    start, end = online[-1]
    last_online = start if not last_seen else now if end is None else end
    if end is None:
        return History(name, "ok", read_at, tuple(online), "ONLINE", start, last_online)
    if kind < 0.1:
        disabled = random.randrange(end, now)
        return History(name, "ok", read_at, tuple(online), "DISABLE", disabled, last_online)
    status = "not_found" if kind < 0.12 else "ok"
    return History(name, status, read_at, tuple(online), "OFFLINE", end, last_online)


def make_fleet(seed: int, *, last_seen: bool = False, devices: int = DEVICES) -> tuple[list[History], int]:
    random = Random(f"fleet {seed}")
    now = round(MOMENTS[seed % len(MOMENTS)].timestamp() * 1000) + random.randrange(1000)
    return [make_history(random, index, now, last_seen=last_seen) for index in range(devices)], now


def open_fleet(fleet: Sequence[History]) -> duckdb.DuckDBPyConnection:
    """Return a database with the tables that the decision reads."""
    database = duckdb.connect(config={"threads": 1})
    database.execute("SET TimeZone = 'UTC'")
    columns = {
        "device_name": [device.name for device in fleet],
        "status": [device.status for device in fleet],
        "read_at": [device.read_at for device in fleet],
    }
    database.execute(
        "CREATE TABLE results AS SELECT unnest($1::VARCHAR[]) AS device_name, unnest($2::VARCHAR[]) AS status, "
        "make_timestamp_ms(unnest($3::BIGINT[])) AS audited_at",
        list(columns.values()),
    )
    database.execute(
        "CREATE TABLE candidates AS SELECT rowid AS position, 'p' AS product_key, device_name, NULL::VARCHAR AS iot_id "
        "FROM results"
    )
    database.execute(
        "CREATE TABLE reasons_by_result AS SELECT rowid AS position, status, audited_at, "
        "NULL::UBIGINT AS previous_iot_id_hash, NULL::VARCHAR AS selection_reason FROM results"
    )
    return database


def report(fleet: Sequence[History], last_online: TimeForm, timestamp: TimeForm, zone: tzinfo) -> bytes:
    """Return the response of the platform."""
    entries = []
    for index, device in enumerate(fleet):
        if device.state is None:
            continue
        entry: dict[str, object] = {"deviceName": device.name, "status": device.state}
        entry |= time_member("timestamp", device.changed, timestamp, zone, index)
        if device.last_online is not None:
            entry |= time_member("lastOnlineTime", device.last_online, last_online, zone, index)
        entries.append(entry)
    return orjson.dumps({"success": True, "code": "", "deviceStatusList": {"deviceStatus": entries}})


def write_reported(folder: Path, fleet: Sequence[History], body: bytes) -> str:
    """Write the file of states as an audit does; return the SQL that reads it."""
    response = parse_response(200, {}, body, now=0.0, response_type=DEVICE_STATES_RESPONSE)
    devices = [Device("eu", "p", device.name, None) for device in fleet]
    journal, out = folder / "states.jsonl", folder / "states.parquet"
    journal.write_bytes(_encode_states(devices, parse_connection_states(response, now=math.inf)))
    write_states(journal, out)
    return f"read_parquet('{out}')"


def decide(
    database: duckdb.DuckDBPyConnection, states: str, rule: IncrementalRule, learned: LearnedOffset | None
) -> list[str | None]:
    """Return why each device is queried; None: it is not."""
    create_reasons(database, states, rule, result="status", draw="1", learned=learned)
    rows = database.execute("SELECT selection_reason FROM with_reason ORDER BY position").fetchall()
    database.execute("DROP TABLE with_reason")
    return [reason for (reason,) in rows]


def uncertainty(form: TimeForm, learned: LearnedOffset | None) -> int:
    """Return the milliseconds by which the latest moment that a form can mean may be after the true one."""
    return (0 if form not in {"text", "mixed"} else 2 * HOUR if learned is not None else 26 * HOUR) + 1_000


HAS_LOCAL, HAS_ZONE = {"text", "mixed"}, {"iso", "offset", "milliseconds", "digits", "seconds", "mixed"}
UNUSABLE = {"unreadable", "empty", "null", "absent"}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_changed_device_is_carried_and_readable_states_are_used(tmp_path: Path, seed: int) -> None:
    last_seen = seed % 4 == 3
    fleet, now = make_fleet(seed, last_seen=last_seen)
    zone = ZONES[seed % len(ZONES)]
    database = open_fleet(fleet)
    for number, last_online in enumerate(FORMS):
        timestamp = FORMS[(number + seed) % len(FORMS)]
        states = write_reported(tmp_path, fleet, report(fleet, last_online, timestamp, zone))
        learned = learn_offset(database, states)
        if learned is not None:
            assert learned.minutes in {offset_at(zone, now - days * DAY) for days in (0, 30)}
        if isinstance(zone, timezone):
            shown = (
                last_online in HAS_LOCAL and timestamp in HAS_ZONE and (last_online, timestamp) != ("mixed", "mixed")
            )
            assert (learned is not None) == (shown and not last_seen)
        for rule in (STRICT, RECONNECTED):
            reasons, kind = decide(database, states, rule, learned), rule.change_detection
            margin = MARGIN + max(uncertainty(last_online, learned), uncertainty(timestamp, None))
            for device, reason in zip(fleet, reasons, strict=True):
                case = (last_online, timestamp, kind, device, reason)
                if reason is None:
                    assert not device.may_have_changed(kind, device.read_at), case
                elif not last_seen and not {last_online, timestamp} & UNUSABLE:
                    # A device that is disabled went offline before: nothing shows when.
                    is_disabled = device.state == "DISABLE" and device.changed > device.read_at - margin
                    assert is_disabled or device.may_have_changed(kind, device.read_at - margin), case
    database.close()


def offset_at(zone: tzinfo, milliseconds: int) -> int:
    offset = datetime.fromtimestamp(milliseconds / 1000, zone).utcoffset()
    assert offset is not None
    return round(offset / timedelta(minutes=1))


NOW = round(datetime(2025, 3, 20, 12, tzinfo=UTC).timestamp() * 1000)
NEW_YORK = ZoneInfo("America/New_York")


def online_device(number: int, came_online: int, last_online: int | None = None) -> History:
    shown = came_online if last_online is None else last_online
    return History(f"online-{number}", "ok", NOW - HOUR, ((came_online, None),), "ONLINE", came_online, shown)


def learned_from(folder: Path, fleet: Sequence[History], zone: tzinfo = NEW_YORK) -> LearnedOffset | None:
    with open_fleet(fleet) as database:
        return learn_offset(database, write_reported(folder, fleet, report(fleet, "text", "milliseconds", zone)))


def test_zone_is_learned_from_enough_devices_that_agree(tmp_path: Path) -> None:
    recent = [online_device(number, NOW - number * HOUR) for number in range(1, 21)]
    assert learned_from(tmp_path, recent) == LearnedOffset(-240, 20)
    assert str(LearnedOffset(-240, 20)) == "UTC-04:00"
    assert learned_from(tmp_path, recent[1:]) is None  # 19 devices
    elsewhere = replace(recent[0], name="elsewhere", last_online=recent[0].changed + 3 * HOUR)
    assert learned_from(tmp_path, [*recent, elsewhere]) is None  # 20 of 21 agree
    winter = [online_device(100 + number, NOW - 20 * DAY - number * HOUR) for number in range(20)]
    assert learned_from(tmp_path, [*recent, *winter]) is None  # the clock was changed between
    long_ago = [online_device(100 + number, NOW - 60 * DAY - number * HOUR) for number in range(20)]
    assert learned_from(tmp_path, [*recent, *long_ago]) == LearnedOffset(-240, 20)


def test_difference_of_two_times_that_is_no_zone_is_not_learned(tmp_path: Path) -> None:
    def restarted(moment: int, spread: int, last_seen: int) -> list[History]:
        return [online_device(number, moment + number * spread, last_seen) for number in range(40)]

    # All restarted eight hours ago, and "last online" is now: this looks like UTC+08:00.
    assert learned_from(tmp_path, restarted(NOW - 8 * HOUR, 1000, NOW), UTC) is None
    # Some came online half an hour later, and "last online" is now.
    assert learned_from(tmp_path, restarted(NOW - 8 * HOUR, 45_000, NOW), UTC) is None
    assert (
        learned_from(tmp_path, [online_device(n, NOW - n * HOUR, NOW - n * HOUR + 15 * HOUR) for n in range(40)], UTC)
        is None
    )
    off_by_minutes = [online_device(n, NOW - n * HOUR, NOW - n * HOUR + 7 * MINUTE) for n in range(40)]
    assert learned_from(tmp_path, off_by_minutes, UTC) is None


def test_learned_zone_allows_for_daylight_saving_time(tmp_path: Path) -> None:
    """Read as UTC-04:00, the zone of today, the device came online at 14:50, half an hour before its result counts."""
    came_online = datetime(2025, 3, 8, 10, 50, tzinfo=NEW_YORK)  # 15:50 UTC, as the clock was changed on the next day
    read_at = round(datetime(2025, 3, 8, 15, 35, tzinfo=UTC).timestamp() * 1000)
    start = round(came_online.timestamp() * 1000)
    reconnected = History("r", "ok", read_at, ((start, start + HOUR),), "OFFLINE", start + HOUR, start)
    early = replace(reconnected, name="e", online=((start - 3 * HOUR, start + HOUR),), last_online=start - 3 * HOUR)
    fleet = [reconnected, early, *(online_device(number, NOW - number * HOUR) for number in range(1, 31))]
    with open_fleet(fleet) as database:
        states = write_reported(tmp_path, fleet, report(fleet, "text", "milliseconds", NEW_YORK))
        learned = learn_offset(database, states)
        assert learned == LearnedOffset(-240, 30)
        assert decide(database, states, RECONNECTED, learned)[:2] == ["unknown", None]
        assert decide(database, states, RECONNECTED, None)[:2] == ["unknown", "unknown"]


STATE: dict[str, object] = {
    "deviceName": "d",
    "status": "OFFLINE",
    "timestamp": NOW - DAY,
    "lastOnlineTime": NOW - 2 * DAY,
}
RECENT = {"timestamp": NOW - MINUTE}
"""It went offline after the result was read, so the last-online time decides."""


@pytest.mark.parametrize("spelled", [str, lambda name: name[0].upper() + name[1:]], ids=["tuya", "alibaba"])
@pytest.mark.parametrize(
    ("change", "strict", "reconnected"),
    [
        ({}, None, None),
        ({"lastOnlineTime": None}, None, None),
        ({"lastOnlineTime": "soon"}, "unknown", "unknown"),
        ({"lastOnlineTime": {"time": 1}}, "unknown", "unknown"),
        ({"lastOnlineTime": [NOW - 2 * DAY]}, "unknown", "unknown"),
        ({"lastOnlineTime": True}, "unknown", "unknown"),
        ({"lastOnlineTime": 0}, "unknown", "unknown"),
        ({"lastOnlineTime": "1970-01-01 08:00:00"}, "unknown", "unknown"),
        ({"lastOnlineTime": NOW - MINUTE}, "connected", "connected"),
        ({"timestamp": "20250319"}, "unknown", "unknown"),
        ({"timestamp": ""}, "unknown", "unknown"),
        ({"timestamp": "2025-03-20 02:00:00"}, "unknown", None),
        (RECENT, "connected", None),
        ({**RECENT, "lastOnlineTime": None}, "connected", "unknown"),
        ({**RECENT, "lastOnlineTime": "2025-03-20 11:30:00"}, "connected", "unknown"),
        ({**RECENT, "lastOnlineTime": "2025-03-18 11:30:00"}, "connected", None),
        ({**RECENT, "lastOnlineTime": "2025-03-20T11:30:00Z"}, "connected", "connected"),
        ({**RECENT, "lastOnlineTime": "2025-03-20 19:30:00+0800"}, "connected", "connected"),
        ({**RECENT, "lastOnlineTime": (NOW - 2 * DAY) // 1000}, "connected", None),
        ({**RECENT, "lastOnlineTime": str((NOW - 2 * DAY) // 1000)}, "connected", None),
        ({"status": "ONLINE"}, "connected", None),
        ({"status": "ONLINE", **RECENT}, "connected", "connected"),
        ({"status": "ONLINE", "timestamp": "2025-03-20 11:30:00"}, "connected", "unknown"),
        ({"status": "DISABLE", **RECENT}, "connected", None),
        ({"status": "DISABLE", **RECENT, "lastOnlineTime": ""}, "connected", "unknown"),
        ({"status": ""}, "unknown", "unknown"),
        ({"status": "SLEEPING"}, "unknown", "unknown"),
        ({"status": "UNACTIVE"}, "connected", "connected"),
        ({"deviceName": None}, "unknown", "unknown"),
        ({"deviceName": "another"}, "unknown", "unknown"),
        ({"productKey": "another"}, "unknown", "unknown"),
    ],
    ids=str,
)
def test_device_is_queried_unless_its_state_shows_no_change(
    tmp_path: Path, change: dict[str, object], strict: str | None, reconnected: str | None, spelled: Any
) -> None:
    entry = {spelled(name): value for name, value in {**STATE, **change}.items()}
    other = {spelled(name): value for name, value in {**STATE, "deviceName": "other"}.items()}
    body = orjson.dumps({"Success": True, "DeviceStatusList": {"DeviceStatus": [other, entry]}})
    fleet = [History(name, "ok", NOW - HOUR, (), "OFFLINE", 0, 0) for name in ("d", "other")]
    with open_fleet(fleet) as database:
        states = write_reported(tmp_path, fleet, body)
        assert decide(database, states, STRICT, None) == [strict, None]
        assert decide(database, states, RECONNECTED, None) == [reconnected, None]


@pytest.mark.parametrize(
    ("document", "missing", "existing"),
    [
        ({"deviceStatusList": {"deviceStatus": []}}, None, "connected"),
        ({"deviceStatusList": []}, None, "connected"),
        ({"data": {"deviceStatusList": {"deviceStatus": []}}}, None, "connected"),
        ({"deviceStatusList": {"deviceStatus": [{**STATE, "deviceName": "another"}]}}, "unknown", "unknown"),
        ({"deviceStatusList": {"deviceStatus": [{}]}}, "unknown", "unknown"),
        ({"deviceStatusList": {"deviceStatus": [STATE, {**STATE, "status": "ONLINE"}]}}, "unknown", "connected"),
        ({"deviceStatusList": {"deviceStatus": [STATE, STATE]}}, "connected", "connected"),
        ({"deviceStatusList": None}, "unknown", "unknown"),
        ({"data": None}, "unknown", "unknown"),
        ({}, "unknown", "unknown"),
    ],
    ids=str,
)
def test_device_that_did_not_exist_is_carried_only_if_a_complete_list_lacks_it(
    tmp_path: Path, document: dict[str, object], missing: str | None, existing: str
) -> None:
    before = History("d", "not_found", NOW - HOUR, (), None, 0, None)
    fleet = [before, replace(before, name="other", status="ok")]
    with open_fleet(fleet) as database:
        states = write_reported(tmp_path, fleet, orjson.dumps({"success": True, **document}))
        assert decide(database, states, STRICT, None) == [missing, existing]
