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
from auditor.query.version_tables import define_target_marks
from auditor.runs.folder import CHANGES, DEVICES, FIRMWARE, FLEET, INVENTORY_JSON, MODULES, TASKS, StoredRun
from auditor.runs.locking import current_state
from auditor.runs.views import (
    FIRMWARE_COLUMNS,
    TASK_COLUMNS,
    jobs_query,
    no_rows,
    parquet_of_run,
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


def released_versions_query(counts: str, selected: float, leading: str = "") -> str:
    """Return the SQL of the versions that are firmware: when each was created, and whether it was ``released``.

    A version is released if a job that is no verification, and was started, installs it; where jobs are unknown, if it
    was verified. A cancelled job was started if it updated a device, or failed to. Jobs that are only for selected
    devices (``SPECIFIC``) release a version once they were for the fraction ``selected`` of the devices with the
    module, or so many devices run it.

    Args:
        counts: a query of the devices by account, product_key, module_name and module_version.
        selected: see above.
        leading: columns by which all is divided, each with a comma behind, such as ``run, ``.
    """
    product, module = f"{leading}account, product_key", f"{leading}account, product_key, module_key"
    return f"""
  WITH job_rows AS (
    SELECT {product}, lower(module_name) AS module_key, version, job.job_id, job.job_status, job.target_selection
    FROM (SELECT *, unnest(jobs) AS job FROM firmware) WHERE job.job_type IS DISTINCT FROM 'VERIFY_FIRMWARE'
  ), offered AS (
    SELECT {product}, job_id, count(*) AS devices, bool_or(task_status IN ('SUCCEEDED', 'FAILED')) AS was_tried
    FROM tasks GROUP BY ALL
  ), started AS (
    SELECT {module}, version, bool_or(target_selection IS DISTINCT FROM 'SPECIFIC') AS is_for_all,
      coalesce(sum(devices), 0) AS offered
    FROM job_rows LEFT JOIN offered USING ({product}, job_id)
    WHERE job_status IN ('IN_PROGRESS', 'COMPLETED') OR (job_status = 'CANCELED' AND was_tried) GROUP BY ALL
  ), running AS (
    SELECT {product}, lower(module_name) AS module_key, module_version AS version, sum(devices) AS devices
    FROM ({counts}) GROUP BY ALL
  ), reporting AS (
    SELECT {module}, sum(devices) AS reporting FROM running GROUP BY ALL
  ), versions AS (
    SELECT {product}, lower(module_name) AS module_key, version, min(created_at) AS created_at,
      bool_or(jobs IS NULL AND verification IN ('verified', 'not_needed')) AS is_verified
    FROM firmware WHERE version IS NOT NULL GROUP BY ALL
  )
  SELECT {module}, version, created_at, coalesce(is_verified, false) OR coalesce(is_for_all
    OR greatest(offered, coalesce(devices, 0)) >= {selected} * reporting, false) AS released
  FROM versions LEFT JOIN started USING ({module}, version) LEFT JOIN running USING ({module}, version)
  LEFT JOIN reporting USING ({module})"""


_LAST = "(coalesce(created_at, TIMESTAMP '1970-01-01'), coalesce(modified_at, TIMESTAMP '1970-01-01'), job_id)"
"""SQL by which the last one of the tasks of a device is found."""


def last_task_state(condition: str = "true") -> str:
    """Return the SQL of the state of an update by the last of the tasks of a device that meet a condition."""
    return f"""CASE arg_max(task_status, {_LAST}) FILTER ({condition})
    WHEN 'CANCELED' THEN 'never_offered' WHEN 'FAILED' THEN 'failed' WHEN 'SUCCEEDED' THEN 'reverted'
    ELSE CASE WHEN bool_or({condition}) THEN 'offered' END END"""


def device_releases_query(leading: str = "") -> str:
    """Return the SQL of each module of a device beside what was released for it, and its last update.

    Released versions are in the order in which they were created. A device is behind by those that are newer than its
    own; that is NULL if its own version is no known firmware. ``leading`` is as in ``released_versions_query``, whose
    result is ``released_versions``. ``release_marks`` says which versions are the released one, or newer.
    """
    product, module = f"{leading}account, product_key", f"{leading}account, product_key, module_key"
    same = " AND ".join(f"newer.{name} = own.{name}" for name in module.split(", "))
    return f"""
  WITH behind AS (
    SELECT {", ".join(f"own.{name}" for name in module.split(", "))}, own.version, count(newer.version) AS behind_by
    FROM released_versions own LEFT JOIN released_versions newer
      ON {same} AND newer.released AND newer.created_at > own.created_at GROUP BY ALL
  ), newest AS (
    SELECT {module}, version AS released_version, created_at AS released_at
    FROM released_versions JOIN release_marks USING ({module}, version) WHERE is_target
  ), last_tasks AS (
    SELECT {product}, device_name, module_key, state, unnest(task) FROM (
      SELECT {product}, device_name, module_key, {last_task_state("version = released_version")} AS state,
        arg_max({{'task_version': version, 'task_status': task_status, 'task_message': task_message,
          'task_modified_at': modified_at}}, {_LAST}) AS task
      FROM (SELECT *, lower(module_name) AS module_key FROM tasks) LEFT JOIN newest USING ({module}) GROUP BY ALL)
  ), reported AS (
    SELECT *, lower(module_name) AS module_key, module_version AS version FROM modules
  )
  SELECT {leading}account, product_key, device_name, iot_id, module_name, module_version, released_version,
    released_at, CASE WHEN released_version IS NOT NULL THEN behind_by END AS behind_by,
    task_version, task_status, task_message, task_modified_at,
    CASE WHEN released_version IS NULL THEN NULL WHEN on_target THEN 'current'
      ELSE coalesce(state, 'never_offered') END AS update_state
  FROM reported LEFT JOIN newest USING ({module}) LEFT JOIN behind USING ({module}, version)
  LEFT JOIN release_marks USING ({module}, version) LEFT JOIN last_tasks USING ({product}, device_name, module_key)"""


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
        "state": current_state(run.folder, manifest),
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
