"""The changes of several runs as one table, read from their ``changes.parquet``.

A row is a module of a device whose version differs from the last one that is known, or of a device that joined, left,
was not seen or was seen again. ``old_version`` is the version before, ``new_version`` the one since; a device without
modules has one row without a module.

| change | meaning |
|---|---|
| ``upgraded``, ``downgraded``, ``changed``, ``appeared``, ``vanished`` | as in ``auditor diff`` |
| ``joined``, ``left`` | the device is present since this run; it is not in the fleet any more, or unknown |
| ``not_seen`` | the device has no answer in this run; ``old_version`` is the last known one. A row in every such run |
| ``seen`` | the device answers for the first time, or again with the same version |

``answered_at`` is the time of the answer that shows the change; of a device that is not seen, that of its last answer.
"""

from collections.abc import Sequence

from auditor.runs.folder import CHANGES, StoredRun
from auditor.runs.views import parquet_of_run
from auditor.storage.database import Database, sql_literal

CHANGE_COLUMNS = {
    **dict.fromkeys(
        ("account", "product_key", "device_name", "iot_id", "module_name", "change", "old_version", "new_version"),
        "VARCHAR",
    ),
    "answered_at": "TIMESTAMP",
}
"""Columns of ``changes.parquet``, and their types. A file of another program may have others: they are converted."""


def define_change_log(database: Database, runs: Sequence[StoredRun], name: str = "change_log") -> None:
    """Define a view of the changes of runs: ``run`` (its folder), ``started_at``, and the columns of their files."""
    columns = ", ".join(f"{column}::{kind} AS {column}" for column, kind in CHANGE_COLUMNS.items())
    queries = [
        f"SELECT {run_columns(run)}, {columns} FROM {parquet_of_run(database, run.folder / CHANGES)}" for run in runs
    ]
    if not queries:
        empty = ", ".join(f"NULL::{kind} AS {column}" for column, kind in CHANGE_COLUMNS.items())
        queries = [f"SELECT NULL::VARCHAR AS run, NULL::TIMESTAMP AS started_at, {empty} WHERE false"]
    database.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(queries)}")


def run_columns(run: StoredRun) -> str:
    """Return the SQL of the columns that say which run a row is of: ``run`` and ``started_at``."""
    started_at = run.manifest.started_at.removesuffix("Z")
    return f"{sql_literal(run.folder.name)} AS run, {sql_literal(started_at)}::TIMESTAMP AS started_at"
