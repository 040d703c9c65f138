"""Which accounts of a run are silent, from the devices of sealed runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.audit.finalize import conclude, correct_times
from auditor.audit.silence import MIN_QUERIED_DEVICES, MIN_SILENCED_DEVICES, find_silent_accounts
from auditor.runs.folder import DEVICES, MODULES, RunCatalog
from auditor.runs.manifest import AccountInfo, DeviceCounts, FleetInfo, Manifest, SilentAccount, write_manifest
from auditor.runs.selection_info import AccountSelection, SelectionInfo
from tests.database import connect

Rows = dict[tuple[str, str | None], int]
"""Number of devices by status and source."""

MANY = MIN_QUERIED_DEVICES


def manifest_of(started_at: str = "2026-11-22T02:00:00.000Z", *, connected: int = 0, silent: bool = False) -> Manifest:
    selection = SelectionInfo(
        "incremental", accounts=(AccountSelection("eu", states_requested=100, states_unknown=100 - connected),)
    )
    return Manifest(
        auditor_version="1",
        name="run",
        state="partial",
        started_at=started_at,
        finished_at=started_at,
        accounts=(AccountInfo("eu", "http://127.0.0.1/", "pascal", None),),
        fleet=FleetInfo("fleet.csv", 100, 0, ""),
        devices=DeviceCounts(not_found=100),
        selection=selection,
        silent=(SilentAccount("eu", "empty", 3),) if silent else (),
    )


def write_devices(folder: Path, accounts: dict[str, Rows], manifest: Manifest | None = None) -> Path:
    folder.mkdir(parents=True)
    rows = [(name, *key) for name, each in accounts.items() for key, devices in each.items() for _ in range(devices)]
    with connect() as database:
        database.execute("CREATE TEMP TABLE devices (account VARCHAR, status VARCHAR, source VARCHAR, number INT)")
        if rows:
            numbered = [(*row, number) for number, row in enumerate(rows)]
            database.executemany("INSERT INTO devices VALUES (?, ?, ?, ?)", numbered)
        # As in a run: an id is known of the devices that reported something.
        ids = "CASE WHEN status = 'ok' THEN 'id' || number END AS iot_id"
        at = "TIMESTAMP '2026-11-20 02:00:00' + to_hours(CASE WHEN source IN ('queried', 'carried later') THEN 1 ELSE 0 END) AS audited_at"
        names = f"'k1' AS product_key, 'd' || number AS device_name, {ids}, {at}"
        database.execute(f"CREATE OR REPLACE TEMP TABLE devices AS SELECT * EXCLUDE number, {names} FROM devices")
        database.execute(f"COPY devices TO '{folder / DEVICES}'")
        database.execute(f"COPY devices TO '{folder / MODULES}'")
    if manifest is not None:
        write_manifest(folder, manifest)
    return folder


def silent(folder: Path, rows: Rows, manifest: Manifest | None = None) -> list[str]:
    run = write_devices(folder / "runs" / "20261122T020000Z-run", {"eu": rows})
    return [each.reason for each in find_silent_accounts(run, manifest or manifest_of())]


@pytest.mark.parametrize(
    "rows",
    [
        {("not_found", "queried"): 1},
        {("not_found", "queried"): 50, ("failed", "queried"): 3, ("pending", None): 4},
        {("not_found", "queried"): 5, ("pending", "unsampled"): 95},
        {("not_found", "queried"): MANY, ("ok", "carried"): 1_000},
    ],
)
def test_an_account_of_which_no_device_exists_is_silent(tmp_path: Path, rows: Rows) -> None:
    assert silent(tmp_path, rows) == ["not_found"]


@pytest.mark.parametrize(
    "rows",
    [
        {("not_found", "queried"): 99, ("ok", "queried"): 1},
        {("not_found", "queried"): 99, ("empty", "queried"): 1},
        {("failed", "queried"): 9, ("pending", None): 9},
        {("ok", "carried"): 100},
        {("not_found", "carried"): 100},
        {("not_found", "queried"): MANY - 1, ("ok", "carried"): 100},
        {("empty", "queried"): 100},
        {},
    ],
)
def test_an_account_with_a_device_or_without_enough_answers_is_not_silent(tmp_path: Path, rows: Rows) -> None:
    assert silent(tmp_path, rows) == []


def test_devices_that_were_removed_are_no_silence_where_the_platform_reports_states_of_others(tmp_path: Path) -> None:
    rows: Rows = {("not_found", "queried"): MANY, ("ok", "carried"): 80}
    assert silent(tmp_path / "a", rows, manifest_of(connected=80)) == []
    assert silent(tmp_path / "b", rows, manifest_of(connected=0)) == ["not_found"]


EMPTY: Rows = {("empty", "queried"): 7, ("not_found", "queried"): 2}
NORMAL: Rows = {("ok", "queried"): 8, ("empty", "queried"): 1}


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ([], []),
        ([(NORMAL, False)], ["empty"]),
        ([({("ok", "carried"): 1}, False)], ["empty"]),
        ([(EMPTY, False)], []),
        ([(NORMAL, False), (EMPTY, True), (EMPTY, True)], ["empty"]),
        ([(NORMAL, False), (EMPTY, False)], []),
        ([(NORMAL, False), ({}, False)], ["empty"]),
    ],
)
def test_an_account_without_modules_is_silent_if_it_had_some_when_it_was_last_believed(
    tmp_path: Path, previous: list[tuple[Rows, bool]], expected: list[str]
) -> None:
    for day, (rows, was_silent) in enumerate(previous, start=1):
        manifest = manifest_of(f"2026-11-{day:02}T02:00:00.000Z", silent=was_silent)
        write_devices(tmp_path / "runs" / f"202611{day:02}T020000Z-run", {"eu": rows}, manifest)
    assert silent(tmp_path, EMPTY) == expected


def test_an_earlier_run_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    for day in (1, 2):
        manifest = manifest_of(f"2026-11-{day:02}T02:00:00.000Z")
        write_devices(tmp_path / "runs" / f"202611{day:02}T020000Z-run", {"eu": NORMAL}, manifest)
    (tmp_path / "runs" / "20261102T020000Z-run" / DEVICES).write_bytes(b"damaged")
    assert silent(tmp_path, EMPTY) == ["empty"]


def test_devices_that_never_had_modules_are_no_silence(tmp_path: Path) -> None:
    earlier: Rows = {("empty", "queried"): 1, ("ok", "queried"): 29}
    write_devices(tmp_path / "runs" / "20261101T020000Z-run", {"eu": earlier}, manifest_of("2026-11-01T02:00:00.000Z"))
    assert silent(tmp_path, {("empty", "queried"): 1}) == []


@pytest.mark.parametrize(("queried", "expected"), [(MANY, ["empty"]), (MANY - 1, [])])
def test_many_devices_that_lost_their_modules_are_silence_beside_carried_results(
    tmp_path: Path, queried: int, expected: list[str]
) -> None:
    earlier: Rows = {("ok", "queried"): 1_000}
    write_devices(tmp_path / "runs" / "20261101T020000Z-run", {"eu": earlier}, manifest_of("2026-11-01T02:00:00.000Z"))
    rows: Rows = {("empty", "queried"): queried, ("not_found", "queried"): 9, ("ok", "carried"): 900}
    assert silent(tmp_path, rows, manifest_of(connected=90)) == expected


@pytest.mark.parametrize("lost", ["empty", "not_found"])
@pytest.mark.parametrize(("queried", "expected"), [(MIN_SILENCED_DEVICES, True), (MIN_SILENCED_DEVICES - 1, False)])
def test_a_few_devices_that_all_lost_their_modules_are_silence_without_connection_states(
    tmp_path: Path, lost: str, queried: int, *, expected: bool
) -> None:
    earlier: Rows = {("ok", "queried"): 1_000}
    write_devices(tmp_path / "runs" / "20261101T020000Z-run", {"eu": earlier}, manifest_of("2026-11-01T02:00:00.000Z"))
    rows: Rows = {(lost, "queried"): queried, ("ok", "carried"): 900}
    assert silent(tmp_path, rows) == [lost] * expected


def test_devices_that_a_few_runs_query_each_add_up_to_silence(tmp_path: Path) -> None:
    earlier: Rows = {("ok", "queried"): 1_000}
    write_devices(tmp_path / "runs" / "20261101T020000Z-run", {"eu": earlier}, manifest_of("2026-11-01T02:00:00.000Z"))
    # Those of the previous run are carried, and were answered after the last device with modules.
    rows: Rows = {("empty", "queried"): 2, ("empty", "carried later"): 3, ("ok", "carried"): 900}
    assert silent(tmp_path, rows) == ["empty"]


def test_each_account_counts_for_itself(tmp_path: Path) -> None:
    accounts: dict[str, Rows] = {
        "a'b": {("not_found", "queried"): 3},
        "eu": NORMAL,
        "us": {("not_found", "queried"): 1},
    }
    run = write_devices(tmp_path / "20261122T020000Z-run", accounts)
    found = find_silent_accounts(run, manifest_of())
    assert found == (SilentAccount("a'b", "not_found", 3), SilentAccount("us", "not_found", 1))
    assert 'account "us": none of 1 queried devices exists' in str(found[1])
    assert "instance_id" in str(found[1])


def test_a_run_with_a_silent_account_is_neither_complete_nor_a_success(tmp_path: Path) -> None:
    manifest = replace(manifest_of(silent=True), devices=DeviceCounts(empty=100))
    concluded, code, reason = conclude(manifest, None, interrupted=False)
    assert (concluded.state, code, reason.code) == ("partial", 1, "silent_account")
    concluded, code, reason = conclude(replace(manifest, silent=()), None, interrupted=False)
    assert (concluded.state, code, reason.code) == ("complete", 0, "success")


def test_a_run_whose_accounts_are_all_silent_is_no_baseline(tmp_path: Path) -> None:
    for day, was_silent in ((1, False), (2, True)):
        manifest = replace(manifest_of(f"2026-11-{day:02}T02:00:00.000Z", silent=was_silent), state="complete")
        write_devices(tmp_path / f"202611{day:02}T020000Z-run", {"eu": NORMAL}, manifest)
    baseline = RunCatalog(tmp_path).baseline("run")
    assert baseline is not None
    assert baseline.folder.name.startswith("20261101")


STARTED, NOW = "2026-11-22T02:00:00.000Z", 1_795_312_800.0


@pytest.mark.parametrize(
    ("offsets", "finished_at"),
    [
        ([], "2026-11-22T02:00:00.000Z"),
        ([59.0], "2026-11-22T02:00:00.000Z"),
        ([3600.0, 0.0], "2026-11-22T02:00:00.000Z"),
        ([3600.0, 3630.0, 3610.0], "2026-11-22T03:00:10.000Z"),
        ([-40 * 86_400.0], "2026-10-13T02:00:00.000Z"),
    ],
)
def test_times_are_corrected_if_all_platforms_agree_that_the_machine_is_wrong(
    offsets: list[float], finished_at: str
) -> None:
    manifest = replace(manifest_of(STARTED), resumed_at=(STARTED, STARTED))
    new = correct_times(manifest, offsets, now=NOW, resumed=False)
    assert (new.started_at, new.finished_at) == (finished_at, finished_at)
    assert (new.clock_offset is None) == (finished_at == STARTED)
    resumed = correct_times(manifest, offsets, now=NOW, resumed=True)
    assert (resumed.started_at, resumed.resumed_at, resumed.finished_at) == (
        STARTED,
        (STARTED, finished_at),
        finished_at,
    )
