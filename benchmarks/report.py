"""Seconds and peak memory of `auditor report` for 30 runs of 1,000,000 devices with 4 modules each, and for 20 devices.

python benchmarks/report.py [DEVICES] [RUNS]
"""

import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import duckdb
from drift import PARQUET, build, measure_command

from auditor.runs.attributes import ATTRIBUTES, ATTRIBUTES_TYPE
from auditor.runs.folder import DEVICES, FLEET, INVENTORY_CSV, INVENTORY_JSON, SEALED
from auditor.runs.inventory import count_devices
from auditor.runs.manifest import MANIFEST, file_info, read_manifest, write_manifest
from auditor.runs.seal import write_inventories
from auditor.runs.views import define_products, define_sealed_views
from auditor.storage.database import sql_literal, temporary_database

RULES = """
[[rule]]
name = "no recalled version"
deny = ["1.4.0"]
[[rule]]
name = "module1 is new enough"
module = "module1"
minimum = "1.6.0"
[[rule]]
name = "few versions alive"
severity = "warning"
max_versions = 9
"""


def build_queried(folder: Path, first: int, devices: int, day: int) -> None:
    """Build a run as in `drift.py`, with attempts, failures, attributes and inventories."""
    build(folder, first, devices, day)
    complete, plain = folder / DEVICES, folder / "plain.parquet"
    complete.rename(plain)
    select = (
        "SELECT * EXCLUDE (ordinal, status, modules), ordinal, status, modules, 1 AS attempts, 'no answer' AS message, "
        "CASE WHEN status = 'failed' THEN 'auditor.Timeout' END AS code, "
        f"MAP {{'product_name': 'Product ' || product_key}}::{ATTRIBUTES_TYPE} AS {ATTRIBUTES} "
        f"FROM read_parquet({sql_literal(plain)})"
    )
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        database.execute(f"COPY ({select}) TO {sql_literal(complete)} {PARQUET}")
    plain.unlink()
    with temporary_database("bench") as (database, work):
        define_sealed_views(database, folder)
        define_products(database, folder)
        write_inventories(database, folder, work)
        for name in (INVENTORY_CSV, INVENTORY_JSON):
            shutil.move(work / name, folder / name)
        counts = count_devices(database)
    files = tuple(file_info(folder / name) for name in (FLEET, *SEALED))
    manifest = replace(read_manifest(folder), devices=counts, files=files, max_failed="1%", state="within_tolerance")
    write_manifest(folder, replace(manifest, started_at=f"2026-10-{day + 1:02}T02:00:00.000Z"))


def build_runs(directory: Path, devices: int, runs: int) -> Path:
    """Build runs on consecutive days; return the newest. Further ones are copies of the first with other dates."""
    directory.mkdir()
    first, last = directory / "run00", directory / f"run{runs:02}"
    # In a separate process, since a command starts with the peak memory of this one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(build_queried, first, 0, devices, 0).result()
        pool.submit(build_queried, last, devices // 200, devices, 1).result()
    manifest = read_manifest(first)
    for day in range(1, runs - 1):
        folder = directory / f"run{day:02}"
        shutil.copytree(first, folder, copy_function=os.link)
        (folder / MANIFEST).unlink()
        write_manifest(folder, replace(manifest, started_at=f"2026-10-{day + 1:02}T02:00:00.000Z"))
    write_manifest(last, replace(read_manifest(last), started_at=f"2026-10-{runs:02}T02:00:00.000Z"))
    return last


def main(devices: int, runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-report-") as temporary:
        alone, rules = Path(temporary, "alone"), Path(temporary, "rules.toml")
        rules.write_text(RULES)
        alone.mkdir()
        page = Path(temporary, "fleet.html")
        print(f"{'command':<70} {'seconds':>8} {'peak MB':>8} {'page kB':>8}")
        for count in (20, devices):
            newest = build_runs(Path(temporary, str(count)), count, runs)
            for name, arguments in (
                ("no previous run", ("--history", str(alone))),
                (f"{runs} runs", ()),
                (f"{runs} runs, 3 rules", ("--rules", str(rules))),
            ):
                seconds, peak = measure_command("report", str(newest), "--out", str(page), *arguments)
                what = f"report of {count:,} devices with 4 modules, {name}"
                print(f"{what:<70} {seconds:>8.1f} {peak:>8.0f} {page.stat().st_size / 1_000:>8,.0f}", flush=True)


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    main(*(given + [1_000_000, 30][len(given) :]))
