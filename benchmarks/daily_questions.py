"""Wall seconds and peak memory of an operator's daily questions, over runs of many devices with 4 modules each.

python benchmarks/daily_questions.py [DEVICES [RUNS [DIRECTORY]]]

With a directory, runs that it contains are used again.
"""

import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from drift import PARQUET, measure_command

from auditor.analysis.recorded_changes import record_changes
from auditor.runs.folder import DEVICES, FAILURES, FLEET, MODULES, RESULTS, SEALED
from auditor.runs.inventory import count_devices
from auditor.runs.manifest import (
    AccountInfo,
    FleetInfo,
    Manifest,
    file_info,
    write_manifest,
)
from auditor.runs.seal import write_inventories
from auditor.runs.selection_info import ExitReason
from auditor.runs.views import define_products, define_sealed_views
from auditor.storage.database import sql_literal

LATEST = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0) - timedelta(days=1)

VERSION = """CASE WHEN {day} < start_day THEN '1.4.0' WHEN rolled AND {day} >= start_day + 2 THEN '1.4.0'
  WHEN m = 3 AND {day} >= 20 THEN '1.6.0' ELSE '1.5.0' END"""
"""A rollout over sixty days, from which one device in 500 goes back after two, and one module that all devices get."""


def build(folder: Path, devices: int, day: int, started: datetime, *, failed_share: int = 300) -> None:
    """Write the sealed run of a day; one device of ``failed_share`` fails, another one each day."""
    folder.mkdir()
    identity = (
        "'eu' AS account, 'k' || (i % 20) AS product_key, 'device' || lpad(i::VARCHAR, 8, '0') AS device_name, "
        "md5(i::VARCHAR) AS iot_id"
    )
    state = f"CASE WHEN hash(i, {day}) % {failed_share} = 0 THEN 'failed' ELSE 'ok' END"
    numbers = f"FROM range({devices}) t(i)"
    at = f"TIMESTAMP '{started:%Y-%m-%d %H:%M:%S}' + to_milliseconds(i)"
    modules = (
        f"SELECT {identity}, 'module' || m AS module_name, {VERSION.format(day=day)} AS module_version "
        "FROM (SELECT i, m, hash(i // 100, m) % 60 AS start_day, hash(i, m, 3) % 500 = 0 AS rolled "
        f"FROM (SELECT i {numbers} WHERE {state} = 'ok'), range(4) n(m))"
    )
    answered = f"CASE WHEN {state} = 'ok' THEN {at} END AS audited_at"
    results = f"""SELECT i AS ordinal, {identity}, {state} AS status,
      CASE WHEN {state} = 'ok' THEN 4 ELSE 0 END::BIGINT AS modules, 1::BIGINT AS pages, 1::BIGINT AS attempts,
      'r' || i AS request_id, {answered}, CASE WHEN {state} = 'failed' THEN 'auditor.Timeout' END AS code,
      NULL::VARCHAR AS message, NULL::BIGINT AS http_status, NULL::TIMESTAMP AS failed_at, NULL::VARCHAR AS reason,
      'queried' AS source, 'ONLINE' AS device_status, NULL::TIMESTAMP AS created_at,
      {at} - INTERVAL 1 HOUR AS last_online_at,
      MAP {{'site': 's' || (i % 50), 'ring': 'r' || (i % 4)}} AS attributes {numbers}"""
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false; SET memory_limit = '4GB'")
        fleet = f"SELECT i AS ordinal, {identity} {numbers}"
        for query, name in ((fleet, FLEET), (results, DEVICES), (modules, MODULES)):
            database.execute(f"COPY ({query}) TO {sql_literal(folder / name)} {PARQUET}")
        for name in (RESULTS, FAILURES):
            (folder / name).touch()
        define_sealed_views(database, folder)
        define_products(database, folder)
        write_inventories(database, folder, folder)
        counts = count_devices(database)
    files = tuple(file_info(folder / name) for name in (FLEET, RESULTS, FAILURES, *SEALED))
    account = AccountInfo("eu", "https://example.com/", "tuya", 1_000)
    manifest = Manifest(
        "0", "nightly", "partial", f"{started:%Y-%m-%dT%H:%M:%S}.000Z", (account,),
        FleetInfo("fleet.csv", devices, 0, files[0].sha256), devices=counts, files=files,
        finished_at=f"{started + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}.000Z",
    )  # fmt: skip
    share = counts.failed / devices
    sentence = f"{counts.failed:,} of {devices:,} devices failed ({share:.2%}, limit 0.1%)"
    manifest = replace(manifest, max_failed="0.1%", exit_code=1, exit_reason=ExitReason("too_many_failed", sentence))
    begun, used = time.monotonic(), time.process_time()
    write_manifest(folder, record_changes(folder, manifest))
    seconds, used = time.monotonic() - begun, time.process_time() - used
    print(f"{folder.name}: changes recorded in {seconds:.1f} s, {used:.1f} s of processor time", flush=True)


def build_all(directory: Path, devices: int, runs: int) -> None:
    for day in range(runs):
        started = LATEST - timedelta(days=runs - 1 - day)
        folder = directory / f"{started:%Y%m%dT%H%M%SZ}-nightly"
        if not folder.exists():
            build(folder, devices, day, started)


def questions(directory: Path) -> list[tuple[str, tuple[str, ...]]]:
    rolled_back = (
        "SELECT DISTINCT product_key, device_name, module_name, old_version, new_version, started_at FROM changes "
        "WHERE change = 'downgraded' AND started_at > now() - INTERVAL 7 DAY ORDER BY ALL"
    )
    below, place = "SELECT count(*) FROM modules WHERE version_below(module_version, '1.5')", str(directory)
    old = ("--product", "k3", "--module", "module0", "--below", "1.5", "--seen-within", "24h")
    rollout = ("--module", "module3", "--below", "1.6.0")
    return [
        ("what changed since Monday", ("diff", place, "--since", "monday")),
        ("which devices changed since Monday", ("diff", place, "--since", "monday", "--devices", "--format", "csv")),
        ("why did last night exit with 1", ("status", place)),
        ("the runs", ("runs", place)),
        ("which devices were rolled back", ("sql", "--runs", place, rolled_back, "--format", "csv")),
        ("how long has device D run 1.4", ("device", "device00000017", place)),
        (
            "older than 1.5, online since yesterday, by site",
            ("inventory", place, *old, "--group-by", "site", "--format", "csv"),
        ),
        (
            "is the rollout of 1.6 done, and where not",
            ("devices", place, *rollout, "--group-by", "site", "--format", "csv"),
        ),
        ("SQL: versions of all runs", ("sql", "--runs", place, "FROM inventory", "--format", "csv")),
        ("SQL: version_below", ("sql", place, below)),
    ]


def main(devices: int, runs: int, directory: Path) -> None:
    build_all(directory, devices, runs)
    print(f"{devices:,} devices with 4 modules, {runs} runs\n{'question':<48} {'seconds':>8} {'peak MB':>8}")
    for name, arguments in questions(directory):
        seconds, peak = measure_command(*arguments)
        print(f"{name:<48} {seconds:>8.1f} {peak:>8.0f}", flush=True)


if __name__ == "__main__":
    size, count = (int(each) for each in (*sys.argv[1:3], *("200000", "10")[len(sys.argv[1:3]) :]))
    if len(sys.argv) > 3:
        Path(sys.argv[3]).mkdir(exist_ok=True)
        main(size, count, Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory(prefix="auditor-questions-") as temporary:
            main(size, count, Path(temporary))
