"""``firmware.parquet`` and ``tasks.parquet``, written from the pages of a run's lists."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from auditor.releases.list_journal import RELEASES_FOLDER
from auditor.runs.folder import FIRMWARE, TASKS
from auditor.runs.views import ReleaseCounts, count_releases, define_base_views, define_releases, read_records
from auditor.storage.database import scalar, scratch_database, translate_errors, with_enough_memory, write_parquet
from auditor.storage.files import put_in_place

WORK = ".releasing"
"""Folder in the run folder for intermediate files."""

_TIMES = dict.fromkeys(("created", "modified"), "BIGINT")

_ITEMS: Mapping[str, Mapping[str, str]] = {
    "firmware": {
        **dict.fromkeys(("firmware_id", "firmware_name", "module_name", "version", "source_version"), "VARCHAR"),
        **dict.fromkeys(("verification", "kind"), "VARCHAR"),
        "size": "BIGINT",
        **_TIMES,
    },
    "jobs": {
        **dict.fromkeys(("job_id", "status", "kind", "selection", "target"), "VARCHAR"),
        **dict.fromkeys(("created", "started", "ended"), "BIGINT"),
    },
    "tasks": {
        **dict.fromkeys(("task_id", "product_key", "device_name", "iot_id", "source_version", "version"), "VARCHAR"),
        **dict.fromkeys(("status", "message"), "VARCHAR"),
        "progress": "BIGINT",
        **_TIMES,
    },
}
"""Members of the items in each file of pages, as in the classes of ``auditor.models``."""

_FIRMWARE = """
  WITH lists AS (SELECT DISTINCT account, key FROM jobs_pages), job_lists AS (
    SELECT account, key, list({
      'job_id': job_id, 'job_status': status, 'job_type': kind, 'selection_type': selection, 'target_selection': target,
      'created_at': epoch_ms(created), 'scheduled_at': epoch_ms(started), 'ended_at': epoch_ms(ended)
    } ORDER BY created, job_id) AS jobs FROM jobs_rows GROUP BY ALL
  )
  SELECT f.account, f.key AS product_key, f.module_name, f.version, f.source_version, f.firmware_id, f.firmware_name,
    f.verification, f.kind AS package_type, f.size AS package_bytes, epoch_ms(f.created) AS created_at,
    epoch_ms(f.modified) AS modified_at, CASE WHEN l.key IS NOT NULL THEN coalesce(j.jobs, []) END AS jobs
  FROM firmware_rows f LEFT JOIN lists l ON f.account = l.account AND f.firmware_id = l.key
    LEFT JOIN job_lists j ON f.account = j.account AND f.firmware_id = j.key
  ORDER BY account, product_key, module_name, created_at, firmware_id"""

_TASKS = """
  SELECT t.account, t.product_key, t.device_name, t.iot_id, f.module_name, coalesce(t.version, f.version) AS version,
    t.source_version, t.status AS task_status, t.message AS task_message, t.progress,
    epoch_ms(t.created) AS created_at, epoch_ms(t.modified) AS modified_at, f.firmware_id, t.key AS job_id, t.task_id
  FROM tasks_rows t LEFT JOIN jobs_rows j ON t.account = j.account AND t.key = j.job_id
    LEFT JOIN firmware_rows f ON j.account = f.account AND j.key = f.firmware_id"""


_LATEST = """
  row_number() OVER (
    PARTITION BY account, key, coalesce(task_id, iot_id, product_key || '/' || device_name) ORDER BY modified DESC
  ) = 1"""


def write_release_tables(folder: Path, *, divided: bool) -> dict[str, ReleaseCounts]:
    """Write both tables of a run folder from the pages of its lists; return their rows by account.

    Tasks come in the order in which they were listed, so that memory does not depend on their number. Only if lists of
    tasks were ``divided`` by status, those that are in two of them are dropped.

    Raises:
        RunNotWritableError: they cannot be written.
    """
    with translate_errors(f"{folder}: released firmware cannot be written"):
        return with_enough_memory(lambda memory: _write_tables(folder, memory, divided=divided))


def _write_tables(folder: Path, memory: str, *, divided: bool) -> dict[str, ReleaseCounts]:
    work = folder / WORK
    with scratch_database(work, memory=memory) as database:
        for name, item in _ITEMS.items():
            path = folder / RELEASES_FOLDER / f"{name}.jsonl"
            page = read_records(path, {"account": "VARCHAR", "key": "VARCHAR", "items": [item]})
            database.execute(f"CREATE VIEW {name}_pages AS {page}")
            items = f"SELECT account, key, unnest(items) AS item FROM {name}_pages"
            latest = f" QUALIFY {_LATEST}" if divided and name == "tasks" else ""
            rows = f"SELECT account, key, unnest(item) FROM ({items})"
            database.execute(f"CREATE VIEW {name}_rows AS FROM ({rows}){latest}")
        for name, query in ((FIRMWARE, _FIRMWARE), (TASKS, _TASKS)):
            write_parquet(database, query, work / name)
        define_releases(database, work)
        counts = count_releases(database)
        for name in (FIRMWARE, TASKS):
            put_in_place(work / name, folder / name)
    return counts


def remove_release_tables(folder: Path) -> None:
    """Remove both tables of a run folder, if it has them."""
    for name in (FIRMWARE, TASKS):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def read_product_keys(folder: Path) -> dict[str, list[str]]:
    """Return the products of each account: those that the fleet names, and those of answers about other devices.

    Raises:
        RunNotWritableError: the run's files cannot be read.
    """

    def read(memory: str) -> dict[str, list[str]]:
        with scratch_database(folder / WORK, memory=memory) as database:
            define_base_views(database, folder)
            keys = "SELECT account, product_key FROM fleet"
            if scalar(database, "SELECT count(*) FROM fleet WHERE product_key IS NULL"):
                keys += " UNION ALL SELECT account, product_key FROM answered"
            named = f"SELECT * FROM ({keys}) WHERE product_key IS NOT NULL"
            query = f"SELECT account, list(DISTINCT product_key ORDER BY product_key) FROM ({named}) GROUP BY ALL"
            return dict(database.execute(query).fetchall())

    with translate_errors(f"{folder}: its products cannot be read"):
        return with_enough_memory(read)
