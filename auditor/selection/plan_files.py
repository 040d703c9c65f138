"""What was chosen, in files: whom to ask, with what is known of them, and what is carried; of an open ``Choosing``.

What is known is wide, with all modules of a device, so it is read once, in its own order, and never sorted. Names of
devices are most of what a join of a whole fleet would hold: they are joined where they are not known besides.

Files of a run that each account has its part of, and what is in them.
"""

import shutil
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import duckdb

from auditor.errors import RunNotWritableError
from auditor.fleet.readers import COLUMNS
from auditor.runs.folder import CARRIED, PLAN
from auditor.runs.views import define_lines
from auditor.storage.database import (
    AS_PARQUET,
    READING_MEMORY,
    READING_THREADS,
    open_database,
    parquet,
    quoted,
    reason_of,
    write_parquet,
)

ANSWER = ("status", "modules", "total", "pages", "request_id", "audited_at", "reason", "run", "changes")
"""Columns of an answer that is known, beside the names of its device."""


_DEVICE = ("account", *COLUMNS, "device_status")


def join_twins(database: duckdb.DuckDBPyConnection) -> None:
    """A device that the fleet names in both ways is asked by both names or by none: it has one answer.

    Args:
        database: with the tables ``asking`` and ``ranked``.
    """
    (twins,) = database.execute("SELECT count(row) - count(DISTINCT row) FROM asking").fetchone() or (0,)
    if twins:
        database.execute(
            "INSERT INTO ranked SELECT a.place, row, any_value(a.renamed), any_value(r.why), max(rank) FROM asking a "
            "JOIN ranked r USING (row) WHERE a.place NOT IN (SELECT place FROM ranked) GROUP BY a.place, row"
        )


def write_plan(database: duckdb.DuckDBPyConnection, ask: Path, plan: Path, *, also: str | None = None) -> None:
    """Writes who is asked, in order, and the plan, in no order; see ``Choosing.write``.

    Args:
        database: with the views ``wanted`` and ``known`` and the table ``ranked``.
        ask: who is asked.
        plan: the plan.
        also: the SQL of devices that are in the plan besides: their columns as in ``wanted``, and row, why and rank.
    """
    columns = ", ".join(_DEVICE)
    ordered = f"SELECT {columns} FROM wanted JOIN (SELECT place, rank FROM ranked) USING (place) ORDER BY rank"
    write_parquet(database, ordered, ask)
    # Of one that failed nothing else is known; a CASE around all of it would copy every list of modules.
    answer = ", ".join(f"nullif(k.{name}, 'failed') AS {name}" if name == "status" else f"k.{name}" for name in ANSWER)
    known = ", ".join(f"k.{name} AS known_{name}" for name in COLUMNS)
    named = _named_as_known(database)
    asked = f"SELECT d.*, row, why, rank FROM wanted d JOIN (FROM ranked WHERE {'true' if named is None else _APART}) "
    asked += f"USING (place){'' if also is None else f' UNION ALL {also}'}"
    query = (
        f"SELECT {', '.join(f'd.{name}' for name in _DEVICE)}, why, rank, {answer}, {known} "
        f"FROM ({asked}) d LEFT JOIN known k ON d.row = k.file_row_number"
    )
    if named is not None:
        same = f"SELECT k.account, {named}, NULL::VARCHAR AS device_status, why, rank, {answer}, {known}"
        alike = f"FROM known k JOIN (FROM ranked WHERE NOT ({_APART})) r ON r.row = k.file_row_number"
        query = f"{same} {alike} UNION ALL {query}"
    write_parquet(database, query, plan)


_APART = "row IS NULL OR renamed"


def _named_as_known(database: duckdb.DuckDBPyConnection) -> str | None:
    """The SQL of a device's names as the fleet has them, from what is known.

    None where the fleet names devices in several ways, or the platform's list tells of their statuses.
    """
    counts = ", ".join(f"count({name})" for name in (*COLUMNS, "device_status"))
    every, *named, told = database.execute(f"SELECT count(*), {counts} FROM wanted").fetchone() or (0, 0, 0, 0, 0)
    if told or any(number not in {0, every} for number in named):
        return None
    columns = zip(COLUMNS, named, strict=True)
    return ", ".join(f"k.{name}" if number else f"NULL::VARCHAR AS {name}" for name, number in columns)


def write_carried(database: duckdb.DuckDBPyConnection, carried: Path) -> None:
    """Writes what is known of devices that are not asked.

    Args:
        database: with the views ``wanted`` and ``known`` and the tables ``asking`` and ``ranked``.
        carried: the file.
    """
    answer = ", ".join(f"k.{name}" for name in ANSWER)
    told = ", ".join(f"coalesce(d.{name}, k.{name}) AS {name}" for name in COLUMNS)
    same = ", ".join(f"k.{name}" for name in COLUMNS)
    database.execute(
        "CREATE TABLE kept AS SELECT place, row, renamed FROM asking ANTI JOIN ranked USING (place) "
        "WHERE status <> 'failed'"
    )
    write_parquet(
        database,
        f"SELECT account, {same}, {answer} FROM known k JOIN (FROM kept WHERE NOT renamed) a "
        f"ON a.row = k.file_row_number UNION ALL SELECT k.account, {told}, {answer} FROM known k "
        "JOIN (FROM kept WHERE renamed) a ON a.row = k.file_row_number JOIN wanted d USING (place)",
        carried,
    )


def write_with_part(part: Path, target: Path, account: str, out: Path) -> None:
    """Writes what a file is to be that has parts of several accounts, with an account's part in it.

    Args:
        part: the account's.
        target: the file as it is, if it is there.
        account: whose part is replaced.
        out: the file to write.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    try:
        if target.exists():
            _write(f"SELECT * FROM {parquet(target)} WHERE account <> $1 UNION ALL FROM {parquet(part)}", account, out)
        else:
            shutil.copyfile(part, out)
    except (OSError, duckdb.Error) as error:
        raise RunNotWritableError(f"{target} cannot be written: {reason_of(error)}") from error


def keep_accounts(path: Path, accounts: Collection[str]) -> None:
    """Leaves out of a file what is not of these accounts; of none, the file goes.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    new = path.with_suffix(".new")
    try:
        if not accounts:
            path.unlink()
            return
        with closing(open_database(None, READING_MEMORY, READING_THREADS)) as database:
            others = f"SELECT 1 FROM {parquet(path)} WHERE NOT list_contains($1::VARCHAR[], account) LIMIT 1"
            if not database.execute(others, [list(accounts)]).fetchall():
                return
        _write(f"SELECT * FROM {parquet(path)} WHERE list_contains($1::VARCHAR[], account)", list(accounts), new)
        new.replace(path)
    except (OSError, duckdb.Error) as error:
        raise RunNotWritableError(f"{path} cannot be written: {reason_of(error)}") from error


def _write(query: str, given: object, out: Path) -> None:
    with closing(open_database(memory=READING_MEMORY)) as database:
        database.execute(f"COPY ({query}) TO {quoted(out)} {AS_PARQUET}", [given])


def count_chosen(plan: Path, carried: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Devices of a plan by reason, and those whose answers are carried by status.

    Raises:
        RunNotWritableError: a file cannot be read.
    """
    database = open_database(None, READING_MEMORY, READING_THREADS)
    try:
        asked = f"SELECT why, count(*) FROM {parquet(plan)} WHERE why <> 'never_activated' GROUP BY why ORDER BY why"
        kept = f"SELECT status, count(*) FROM {parquet(carried)} GROUP BY status ORDER BY status"
        return (
            dict(database.execute(asked).fetchall()),
            dict(database.execute(kept).fetchall()) if carried.exists() else {},
        )
    except duckdb.Error as error:
        raise RunNotWritableError(f"{plan} cannot be read: {reason_of(error)}") from error
    finally:
        database.close()


_NAMES = ("product_key", "device_name", "iot_id")


def settle(folder: Path, out: Path, accounts: Collection[str], *, sample: bool) -> dict[str, int]:
    """Ends a run's choice where its budget did: what was to be asked and was not.

    Returns:
        how many devices have an answer now that had none, by status.

    Of a sample nothing more is to be asked: the plan keeps those that were, unless none was. Else the answer that is
    known of a device is carried, however old it is; a device of which nothing is known stays pending.

    Args:
        folder: the run folder.
        out: a file of the run folder to write first, of another name.
        accounts: whose budget ended; the others' devices stay to be asked.
        sample: which of both.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    work = out.with_suffix(".settling")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        database = open_database(work, READING_MEMORY, READING_THREADS)
        try:
            define_lines(database, folder)
            return _settle(database, folder, out, accounts, sample=sample)
        finally:
            database.close()
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{folder}: its plan cannot be ended: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _settle(
    database: duckdb.DuckDBPyConnection, folder: Path, out: Path, accounts: Collection[str], *, sample: bool
) -> dict[str, int]:
    outcomes = (
        "SELECT account, product_key, device_name, iot_id FROM lines WHERE source = 'asked' "
        "UNION ALL SELECT account, product_key, device_name, iot_id FROM failures"
    )
    database.execute(f"CREATE TABLE outcomes AS {outcomes}")
    numbered = f"(FROM {parquet(folder / PLAN, options='file_row_number=true')})"
    # A fleet that names a device in both ways has asked about both rows, if about one.
    ways = ("{0}iot_id = o.iot_id", "{0}product_key = o.product_key AND p.{0}device_name = o.device_name")
    database.execute(
        "CREATE TABLE met AS "
        + " UNION ".join(
            f"SELECT file_row_number FROM {numbered} p "
            f"JOIN outcomes o ON p.account = o.account AND p.{way.format(known)}"
            for known in ("", "known_")
            for way in ways
        )
    )
    database.execute("CREATE TABLE ended AS SELECT unnest($1::VARCHAR[]) AS account", [list(accounts)])
    if sample:
        asked = f"SELECT DISTINCT account FROM {numbered} SEMI JOIN met USING (file_row_number) WHERE why = 'sample'"
        stays = f"account NOT IN (FROM ended) OR account NOT IN ({asked}) OR why <> 'sample'"
        kept = f"SELECT * EXCLUDE (file_row_number) FROM {numbered} WHERE file_row_number IN (FROM met) OR {stays}"
        write_parquet(database, f"{kept} ORDER BY file_row_number", out)
        return {}
    told = ", ".join(f"coalesce({name}, known_{name}) AS {name}" for name in _NAMES)
    answer = "status, modules, total, pages, request_id, audited_at, reason, run, changes"
    left = f"{numbered} ANTI JOIN met USING (file_row_number) WHERE status IS NOT NULL AND account IN (FROM ended)"
    rows = f"SELECT account, {told}, {answer} FROM (FROM {left} ORDER BY file_row_number)"
    write_parquet(database, f"FROM {parquet(folder / CARRIED)} UNION ALL {rows}", out)
    return dict(database.execute(f"SELECT status, count(*) FROM {left} GROUP BY status").fetchall())
