"""Files of a selection: the queue of selected devices, ``plan.parquet`` and ``carried.parquet``.

Previous results are wide: they hold all modules of a device. So their file is read once, in its own order, and never
sorted. Device names would be most of what a join of a complete fleet holds in memory. They are joined only if the
previous results do not have them.

Functions that open files raise RunNotWritableError if one cannot be read or written.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from duckdb import DuckDBPyConnection

from auditor.fleet.columns import COLUMNS
from auditor.runs.folder import CARRIED, SELECTED
from auditor.runs.views import QUERIED, define_base_views
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    parquet,
    scalar,
    scratch_database,
    write_parquet,
    write_rows,
)
from auditor.storage.files import create_own_file

RESULT_COLUMNS = ("status", "modules", "total", "pages", "request_id", "audited_at", "reason", "run", "change_count")
"""Columns of a previous result, after the names of its device."""

_DEVICE_COLUMNS = ("account", *COLUMNS, "device_status")


class SelectionFiles(NamedTuple):
    """Files of one account's selection.

    Attributes:
        queue: selected devices in the order of queries; columns: account, product_key, device_name, iot_id and
            device_status.
        selected: the same devices, in no order; columns: those, selection_reason, rank, then ``RESULT_COLUMNS`` of the
            previous result, and previous_product_key, previous_device_name and previous_iot_id.
        carried: the other devices; columns: account, product_key, device_name, iot_id and ``RESULT_COLUMNS``.
        connections: devices whose connection state was read; see ``auditor.selection.connectivity``.
    """

    queue: Path
    selected: Path
    carried: Path
    connections: Path

    @property
    def run_files(self) -> tuple[Path, ...]:
        """Those that become a part of a file of the run. Not every strategy writes all."""
        return tuple(path for path in (self.carried, self.connections, self.selected) if path.exists())


def add_aliases(database: DuckDBPyConnection) -> None:
    """Add the alias rows of selected devices to ``ranked``.

    A device that is listed both by name and by iot_id is queried under both or under neither: it has one result.
    """
    if scalar(database, "SELECT count(previous_row) - count(DISTINCT previous_row) FROM with_reason"):
        database.execute("""
          INSERT INTO ranked
          SELECT w.position, previous_row, any_value(w.renamed), any_value(r.selection_reason), max(rank)
          FROM with_reason w JOIN ranked r USING (previous_row)
          WHERE w.position NOT IN (SELECT position FROM ranked)
          GROUP BY w.position, previous_row""")


def write_selected_devices(
    database: DuckDBPyConnection, files: SelectionFiles, *, include_never_activated: bool = False
) -> None:
    """Write the queue and ``selected``, from ``candidates``, ``never_activated``, ``previous`` and ``ranked``."""
    columns = ", ".join(_DEVICE_COLUMNS)
    queue = "candidates JOIN (SELECT position, rank FROM ranked) USING (position)"
    write_parquet(database, f"SELECT {columns} FROM {queue} ORDER BY rank", files.queue)
    # A failure has no result. A CASE around all columns would copy every list of modules.
    result = ", ".join(
        f"nullif(p.{name}, 'failed') AS {name}" if name == "status" else f"p.{name}" for name in RESULT_COLUMNS
    )
    previous = ", ".join(f"p.{name} AS previous_{name}" for name in COLUMNS)
    names = _names_from_previous(database)
    selected = f"""
      SELECT c.*, previous_row, selection_reason, rank
      FROM candidates c JOIN (FROM ranked WHERE {"true" if names is None else _NAMES_DIFFER}) USING (position)"""
    if include_never_activated:
        selected += " UNION ALL SELECT *, NULL, 'never_activated', NULL FROM never_activated"
    query = f"""
      SELECT {", ".join(f"s.{name}" for name in _DEVICE_COLUMNS)}, selection_reason, rank, {result}, {previous}
      FROM ({selected}) s LEFT JOIN previous p ON s.previous_row = p.file_row_number"""
    if names is not None:
        query = f"""
          SELECT p.account, {names}, NULL::VARCHAR AS device_status, selection_reason, rank, {result}, {previous}
          FROM previous p JOIN (FROM ranked WHERE NOT ({_NAMES_DIFFER})) r ON r.previous_row = p.file_row_number
          UNION ALL {query}"""
    write_parquet(database, query, files.selected)


_NAMES_DIFFER = "previous_row IS NULL OR renamed"


def _names_from_previous(database: DuckDBPyConnection) -> str | None:
    """Return the SQL of a device's names as in the fleet, from the view ``previous``.

    None if the fleet names its devices in several ways, or if it has the statuses that the platform reported.
    """
    counts = ", ".join(f"count({name})" for name in (*COLUMNS, "device_status"))
    row = database.execute(f"SELECT count(*), {counts} FROM candidates").fetchone() or (0, 0, 0, 0, 0)
    devices, *named, with_status = row
    if with_status or any(count not in {0, devices} for count in named):
        return None
    columns = zip(COLUMNS, named, strict=True)
    return ", ".join(f"p.{name}" if count else f"NULL::VARCHAR AS {name}" for name, count in columns)


def write_carried(database: DuckDBPyConnection, out: Path) -> None:
    """Write the previous results of the devices of ``with_reason`` that are not in ``ranked``."""
    database.execute("""
      CREATE TABLE carried AS
      SELECT position, previous_row, renamed FROM with_reason ANTI JOIN ranked USING (position) WHERE status <> 'failed'
    """)
    result = ", ".join(f"p.{name}" for name in RESULT_COLUMNS)
    same_names = ", ".join(f"p.{name}" for name in COLUMNS)
    new_names = ", ".join(f"coalesce(c.{name}, p.{name}) AS {name}" for name in COLUMNS)
    write_parquet(
        database,
        f"""
      SELECT account, {same_names}, {result}
      FROM previous p JOIN (FROM carried WHERE NOT renamed) k ON k.previous_row = p.file_row_number
      UNION ALL
      SELECT p.account, {new_names}, {result}
      FROM previous p JOIN (FROM carried WHERE renamed) k ON k.previous_row = p.file_row_number
      JOIN candidates c USING (position)""",
        out,
    )


def merge_account(part: Path, target: Path, account: str, out: Path) -> None:
    """Write to ``out`` the rows of ``target``, which may be missing, with those of one account replaced by ``part``."""
    with scratch_database(memory=READING_MEMORY, failure=f"{target}: cannot be written") as database:
        if target.exists():
            rows = f"SELECT * FROM {parquet(target)} WHERE account <> $1 UNION ALL FROM {parquet(part)}"
            write_rows(database, rows, out, parameters=[account])
        else:
            with part.open("rb") as source, create_own_file(out) as copy:
                shutil.copyfileobj(source, copy)


def keep_accounts(path: Path, accounts: Collection[str]) -> None:
    """Remove the rows of all other accounts from a file; without accounts the file is deleted."""
    new, is_kept = path.with_suffix(".new"), "list_contains($1::VARCHAR[], account)"
    with scratch_database(memory=READING_MEMORY, failure=f"{path}: cannot be written") as database:
        if not accounts:
            path.unlink()
        elif scalar(database, f"SELECT count(*) FROM {parquet(path)} WHERE NOT {is_kept}", [list(accounts)]):
            rows = f"SELECT * FROM {parquet(path)} WHERE {is_kept}"
            write_rows(database, rows, new, parameters=[list(accounts)])
            new.replace(path)


def count_selected(selected: Path, carried: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return the selected devices by reason, and the carried results by status."""
    by_reason = f"""
      SELECT selection_reason, count(*) FROM {parquet(selected)} WHERE selection_reason <> 'never_activated'
      GROUP BY selection_reason ORDER BY selection_reason"""
    by_status = f"SELECT status, count(*) FROM {parquet(carried)} GROUP BY status ORDER BY status"
    with scratch_database(
        memory=READING_MEMORY, threads=READING_THREADS, failure=f"{selected}: cannot be read"
    ) as database:
        reasons = dict(database.execute(by_reason).fetchall())
        return reasons, dict(database.execute(by_status).fetchall()) if carried.exists() else {}


def finalize_selection(folder: Path, out: Path, accounts: Collection[str], *, sample: bool) -> dict[str, int]:
    """Finalize the selection of a run that ended early; return the number of results that were added, by status.

    A sample keeps only the selected devices that were queried, unless there are none. With another strategy the
    previous results of the devices that were not queried are carried, however old they are; a device without a previous
    result stays pending. Devices of accounts that are not in ``accounts`` remain to be queried.

    ``out`` gets the new selected devices of a sample, else the new carried results.
    """
    with scratch_database(
        out.with_suffix(".finalizing"),
        memory=READING_MEMORY,
        threads=READING_THREADS,
        failure=f"{folder}: its selection cannot be finalized",
    ) as database:
        define_base_views(database, folder)
        return _finalize_selection(database, folder, out, accounts, sample=sample)


def _finalize_selection(
    database: DuckDBPyConnection, folder: Path, out: Path, accounts: Collection[str], *, sample: bool
) -> dict[str, int]:
    database.execute(f"""
      CREATE TABLE outcomes AS
      SELECT account, product_key, device_name, iot_id FROM lines WHERE source IN ({QUERIED})
      UNION ALL SELECT account, product_key, device_name, iot_id FROM failures""")
    selected = f"(FROM {parquet(folder / SELECTED, options='file_row_number=true')})"
    # A row counts as queried under either name, and under either previous name: aliases have one result.
    by_id = "p.{0}iot_id = o.iot_id"
    by_names = "p.{0}product_key = o.product_key AND p.{0}device_name = o.device_name"
    database.execute(
        "CREATE TABLE queried_rows AS "
        + " UNION ".join(
            f"SELECT file_row_number FROM {selected} p JOIN outcomes o "
            f"ON p.account = o.account AND {same.format(prefix)}"
            for prefix in ("", "previous_")
            for same in (by_id, by_names)
        )
    )
    database.execute("CREATE TABLE ended AS SELECT unnest($1::VARCHAR[]) AS account", [list(accounts)])
    if sample:
        query = f"""
          WITH started AS (
            SELECT DISTINCT account FROM {selected} SEMI JOIN queried_rows USING (file_row_number)
            WHERE selection_reason = 'sample'
          )
          SELECT * EXCLUDE (file_row_number) FROM {selected}
          WHERE file_row_number IN (FROM queried_rows)
            OR account NOT IN (FROM ended) OR account NOT IN (FROM started) OR selection_reason <> 'sample'
          ORDER BY file_row_number"""
        write_parquet(database, query, out)
        return {}
    remaining = f"""
      {selected} ANTI JOIN queried_rows USING (file_row_number) WHERE status IS NOT NULL AND account IN (FROM ended)"""
    names = ", ".join(f"coalesce({name}, previous_{name}) AS {name}" for name in COLUMNS)
    added = f"SELECT account, {names}, {', '.join(RESULT_COLUMNS)} FROM (FROM {remaining} ORDER BY file_row_number)"
    write_parquet(database, f"FROM {parquet(folder / CARRIED)} UNION ALL {added}", out)
    return dict(database.execute(f"SELECT status, count(*) FROM {remaining} GROUP BY status").fetchall())
