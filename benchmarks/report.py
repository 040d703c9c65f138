"""Seconds and peak memory of `auditor report` for a run of 1,000,000 devices with 4 modules each and its predecessor.

python benchmarks/report.py [DEVICES]
"""

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import duckdb
from drift import PARQUET, build, measure_command

from auditor.runs.folder import DEVICES
from auditor.runs.manifest import file_info, read_manifest, write_manifest
from auditor.storage.database import sql_literal

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
    """Build a run as in `drift.py`, with attempts and failures."""
    build(folder, first, devices, day)
    complete, plain = folder / DEVICES, folder / "plain.parquet"
    complete.rename(plain)
    select = (
        "SELECT * EXCLUDE (ordinal, status, modules), ordinal, status, modules, 1 AS attempts, 'no answer' AS message, "
        "CASE WHEN status = 'failed' THEN 'auditor.Timeout' END AS code FROM read_parquet({})"
    )
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        columns = database.execute(f"DESCRIBE FROM read_parquet({sql_literal(plain)})").fetchall()
        query = select.format(sql_literal(plain))
        if "audited_at" not in {name for name, *_ in columns}:
            query = f"SELECT *, TIMESTAMP '2026-11-22 02:00:00' AS audited_at FROM ({query})"
        database.execute(f"COPY ({query}) TO {sql_literal(complete)} {PARQUET}")
    plain.unlink()
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, files=tuple(file_info(folder / info.name) for info in manifest.files)))


def main(devices: int) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-report-") as temporary:
        runs, alone, page = (Path(temporary, name) for name in ("runs", "alone", "fleet.html"))
        rules = Path(temporary, "rules.toml")
        rules.write_text(RULES)
        runs.mkdir()
        alone.mkdir()
        old, new = runs / "old", runs / "new"
        # In a separate process, since a command starts with the peak memory of this one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(build_queried, old, 0, devices, 0).result()
            pool.submit(build_queried, new, devices // 200, devices, 1).result()
        print(f"{devices:,} devices with 4 modules\n{'command':<50} {'seconds':>8} {'peak MB':>8} {'page kB':>8}")
        for name, arguments in (
            ("report NEW, no previous run", ("--history", str(alone))),
            ("report NEW", ()),
            ("report NEW --rules R, 3 rules", ("--rules", str(rules))),
        ):
            seconds, peak = measure_command("report", str(new), "--out", str(page), *arguments)
            print(f"{name:<50} {seconds:>8.1f} {peak:>8.0f} {page.stat().st_size / 1_000:>8,.0f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
