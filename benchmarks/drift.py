"""Wall seconds and peak memory of `auditor diff` for two runs of 1,000,000 devices with 4 modules each.

python benchmarks/drift.py [DEVICES]
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import duckdb

from auditor.runs.folder import DEVICES, FLEET, MODULES
from auditor.runs.manifest import AccountInfo, FleetInfo, Manifest, file_info, write_manifest
from auditor.storage.database import ROW_GROUP, sql_literal

PARQUET = f"(FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}, COMPRESSION zstd)"


def build(folder: Path, first: int, devices: int, day: int) -> None:
    """Write a sealed run. On day 1, 10% of the modules are upgraded and 1% downgraded; 0.5% of the devices fail.

    Results have a different order each day, as in an audit.
    """
    folder.mkdir()
    identity = (
        "'eu' AS account, 'k' || (i % 20) AS product_key, 'device' || lpad(i::VARCHAR, 8, '0') AS device_name, "
        "md5(i::VARCHAR) AS iot_id"
    )
    numbers = f"FROM range({first}, {first + devices}) t(i)"
    state = f"CASE WHEN hash(i, {day}) % 200 = 0 THEN 'failed' ELSE 'ok' END"
    chance = "hash(i, m) % 100"
    answered = f"TIMESTAMP '2026-11-2{day} 02:00:00' + to_milliseconds(i) AS audited_at"
    origin = "NULL::VARCHAR AS reason, 'queried' AS source"
    drift = f"CASE WHEN {day} = 0 THEN 0 WHEN {chance} < 10 THEN 1 WHEN {chance} = 10 THEN -1 ELSE 0 END"
    answers = f"(SELECT i {numbers} WHERE {state} = 'ok' ORDER BY hash(i, {day}, 7)), range(4) n(m)"
    version = f"'1.' || (5 + i % 7 + {drift}) || '.0'"
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        for query, name in (
            (f"SELECT i AS ordinal, {identity} {numbers}", FLEET),
            (
                f"SELECT i AS ordinal, {identity}, {state} AS status, 4 AS modules, {answered}, {origin} {numbers}",
                DEVICES,
            ),
            (f"SELECT {identity}, 'module' || m AS module_name, {version} AS module_version FROM {answers}", MODULES),
        ):
            database.execute(f"COPY ({query}) TO {sql_literal(folder / name)} {PARQUET}")
    files = tuple(file_info(folder / name) for name in (FLEET, DEVICES, MODULES))
    accounts = (AccountInfo("eu", "https://example.com/", "tuya", 10),)
    fleet = FleetInfo("fleet.csv", devices, 0, files[0].sha256)
    started_at = f"2026-11-2{day}T02:00:00.000Z"
    write_manifest(folder, Manifest("0", "nightly", "partial", started_at, accounts, fleet, files=files))


def measure_command(*arguments: str) -> tuple[float, float]:
    """Return the wall seconds and peak MB of a command."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "auditor", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if process.stderr is None:
        raise RuntimeError("the command has no standard error")
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        raise RuntimeError(errors)
    return time.monotonic() - started, usage.ru_maxrss / 1024


def main(devices: int) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-drift-") as temporary:
        old, new = (Path(temporary, name) for name in ("old", "new"))
        # In a separate process, since a command starts with the peak memory of this one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(build, old, 0, devices, 0).result()
            pool.submit(build, new, devices // 200, devices, 1).result()
        bounds = ("--module", "module1", "--below", "1.7.0", "--format", "csv")
        device_changes = ("diff", str(old), str(new), "--devices", "--format", "parquet")
        print(f"{devices:,} devices with 4 modules\n{'command':<40} {'seconds':>8} {'peak MB':>8}")
        for name, arguments in (
            ("diff OLD NEW", ("diff", str(old), str(new))),
            ("diff OLD NEW --devices --format parquet", device_changes),
            ("devices NEW --module M --below V", ("devices", str(new), *bounds)),
            ("sql NEW 'FROM inventory'", ("sql", str(new), "FROM inventory")),
        ):
            seconds, peak = measure_command(*arguments)
            print(f"{name:<40} {seconds:>8.1f} {peak:>8.0f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
