"""SQL views over several runs, each with the columns ``run`` (its folder's name) and ``started_at``.

| view | a row |
|---|---|
| ``runs`` | a run: name, state, times, devices by state, exit_code, exit_reason, and whether its devices are readable |
| ``fleet``, ``devices``, ``modules`` | as of one run, of every sealed run |
| ``firmware``, ``jobs``, ``tasks``, ``device_releases`` | as of one run, of every sealed run that read them |
| ``inventory`` | as of one run, from the runs' ``inventory.json`` |
| ``changes`` | a change since the run before; see ``query.change_log`` |
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from auditor.models import RunWarning
from auditor.query.change_log import define_change_log, run_columns
from auditor.query.version_order import define_target_marks
from auditor.runs.folder import CHANGES, DEVICES, FIRMWARE, FLEET, INVENTORY_JSON, MODULES, TASKS, StoredRun
from auditor.runs.views import (
    FIRMWARE_COLUMNS,
    TASK_COLUMNS,
    device_releases_query,
    jobs_query,
    no_rows,
    parquet_of_run,
    released_versions_query,
    releases_query,
)
from auditor.storage.database import Database, sql_read_path, text_lines

_INVENTORY = dict.fromkeys(("account", "product_key", "module_name", "module_version"), "VARCHAR")
_INVENTORY |= {"devices": "BIGINT", "share": "DOUBLE"}

_STATES = ("ok", "empty", "not_found", "failed", "pending")

_RUNS = {
    **dict.fromkeys(("run", "name", "state"), "VARCHAR"),
    **dict.fromkeys(("started_at", "finished_at"), "TIMESTAMP"),
    "seconds": "DOUBLE",
    "devices": "BIGINT",
    **dict.fromkeys(_STATES, "BIGINT"),
    "exit_code": "INTEGER",
    **dict.fromkeys(("exit_reason", "exit_message"), "VARCHAR"),
    "readable": "BOOLEAN",
}


def define_run_views(database: Database, runs: Sequence[StoredRun], work: Path) -> list[Path]:
    """Define the views over runs, which may have been deleted but for their changes; return the files they read.

    ``work`` is a folder for intermediate files.
    """
    readable = [run for run in runs if run.sealed]
    recorded = [run for run in runs if run.manifest.changes is not None and (run.folder / CHANGES).is_file()]
    define_runs(database, runs, work)
    for view, name in (("fleet", FLEET), ("devices", DEVICES), ("modules", MODULES)):
        queries = [
            f"SELECT {run_columns(run)}, * FROM {parquet_of_run(database, run.folder / name)}" for run in readable
        ]
        database.execute(f"CREATE VIEW {view} AS {' UNION ALL BY NAME '.join(queries)}")
    released = _define_releases(database, readable)
    define_inventories(database, readable)
    define_change_log(database, recorded, "changes")
    files = [run.folder / name for run in readable for name in (FLEET, DEVICES, MODULES)]
    return [*files, *released, *(run.folder / CHANGES for run in recorded)]


def _define_releases(database: Database, runs: Sequence[StoredRun]) -> list[Path]:
    """Define the views of released firmware, jobs and tasks over runs; return the files that they read."""
    files = []
    for view, name, columns in (("firmware", FIRMWARE, FIRMWARE_COLUMNS), ("tasks", TASKS, TASK_COLUMNS)):
        stored = [run for run in runs if (run.folder / name).is_file()]
        queries = [
            f"SELECT {run_columns(run)}, * FROM ({releases_query(database, run.folder / name, columns)})"
            for run in stored
        ]
        nothing = no_rows({"run": "VARCHAR", "started_at": "TIMESTAMP", **columns})
        database.execute(f"CREATE VIEW {view} AS {' UNION ALL BY NAME '.join([nothing, *queries])}")
        files += [run.folder / name for run in stored]
    database.execute(f"CREATE VIEW jobs AS {jobs_query('firmware', 'run, started_at, ')}")
    return files


def define_device_releases(database: Database, sql: str, work: Path, *, selected: float, leading: str = "") -> None:
    """Define ``device_releases`` over ``modules``, ``firmware`` and ``tasks``, and ``released_versions``.

    Args:
        database: the database of the query.
        sql: the query that may read it; without its name in it, nothing is read.
        work: a folder for an intermediate file.
        selected: as in ``released_versions_query``.
        leading: as there.
    """
    if "device_releases" not in sql.lower():
        return
    module = f"{leading}account, product_key, module_key"
    counts = f"{leading}account, product_key, module_name, module_version"
    reported = f"SELECT {counts}, count(*) AS devices FROM modules WHERE product_key IS NOT NULL GROUP BY ALL"
    database.execute(f"CREATE TABLE reported_versions AS {reported}")
    database.execute(
        f"CREATE TABLE released_versions AS {released_versions_query('FROM reported_versions', selected, leading)}"
    )
    database.execute(f"""
      CREATE TABLE numbered_versions AS
      WITH used AS (
        SELECT DISTINCT {module.replace("module_key", "lower(module_name) AS module_key")}, module_version AS version
        FROM reported_versions
      ), compared AS (
        SELECT {module}, version, created_at, coalesce(released, false) AS released
        FROM used FULL JOIN released_versions USING ({module}, version)
      )
      SELECT row_number() OVER () AS number, dense_rank() OVER (ORDER BY {module}) AS group_id, *, released
        AND row_number() OVER (PARTITION BY {module} ORDER BY released DESC, created_at DESC NULLS LAST, version) = 1
        AS is_released FROM compared""")
    define_target_marks(
        database,
        "SELECT group_id, number AS version, version AS module_version, false AS in_use, is_released, created_at "
        "FROM numbered_versions",
        work / "target_marks",
    )
    database.execute(
        f"CREATE TABLE release_marks AS SELECT {module}, v.version, m.on_target, m.is_target "
        "FROM numbered_versions v JOIN target_marks m ON v.number = m.version"
    )
    database.execute(f"CREATE VIEW device_releases AS {device_releases_query(leading)}")


def define_runs(database: Database, runs: Sequence[StoredRun], work: Path) -> None:
    """Define the table ``runs``, the newest first; ``work`` is a folder for an intermediate file."""
    path = work / "runs.jsonl"
    path.write_bytes(b"".join(orjson.dumps(run_row(run)) + b"\n" for run in runs))
    columns = orjson.dumps(_RUNS).decode()
    database.execute(
        f"CREATE TABLE runs AS FROM (SELECT unnest(json_transform(line, '{columns}')) "
        f"FROM ({text_lines(sql_read_path(path))})) ORDER BY started_at DESC, run DESC"
    )


def run_row(run: StoredRun) -> dict[str, object]:
    """Return a run as a row of ``runs``."""
    manifest, counts = run.manifest, run.manifest.devices
    reason = manifest.exit_reason
    return {
        "run": run.folder.name,
        "name": manifest.name,
        "state": manifest.state,
        "started_at": manifest.started_at.removesuffix("Z"),
        "finished_at": None if manifest.finished_at is None else manifest.finished_at.removesuffix("Z"),
        "seconds": run.seconds,
        "devices": manifest.fleet.devices,
        **{state: getattr(counts, state) for state in _STATES},
        "exit_code": manifest.exit_code,
        "exit_reason": None if reason is None else reason.code,
        "exit_message": None if reason is None else reason.message,
        "readable": run.sealed,
    }


def size_warnings(run: StoredRun) -> Iterator[RunWarning]:
    """Yield a warning for each file of the views whose size is not the one that was sealed."""
    for file in run.manifest.files:
        if file.name in (FLEET, DEVICES, MODULES, INVENTORY_JSON, CHANGES):
            with contextlib.suppress(OSError):
                if (run.folder / file.name).stat().st_size != file.bytes:
                    detail = f"{file.name} is not the file that was sealed (its size differs)"
                    yield RunWarning("tampered", str(run.folder), detail)


def define_inventories(database: Database, runs: Sequence[StoredRun], name: str = "inventory") -> None:
    """Define a table of the inventories of sealed runs, as their ``inventory.json`` has them."""
    row = f"CASE WHEN json_valid(line) THEN json_transform(line, '{orjson.dumps(_INVENTORY).decode()}') END"
    rows = []
    for run in runs:
        lines = text_lines(sql_read_path(run.folder / INVENTORY_JSON), "store_rejects=true, rejects_limit=1")
        rows.append(
            f"SELECT {run_columns(run)}, unnest({row}) FROM (SELECT rtrim(line, ',') AS line FROM ({lines})) "
            "WHERE line LIKE '{\"account\"%'"
        )
    columns = ", ".join(f"NULL::{kind} AS {column}" for column, kind in _INVENTORY.items())
    nothing = f"SELECT NULL::VARCHAR AS run, NULL::TIMESTAMP AS started_at, {columns} WHERE false"
    database.execute(f"CREATE TABLE {name} AS {' UNION ALL '.join([nothing, *rows])}")
