"""A plan while it is followed: what a sample has shown so far, and how one ends that was not followed to its end."""

import shutil
from collections.abc import Collection
from pathlib import Path

import duckdb

from auditor.database import READING_MEMORY, READING_THREADS, open_database, parquet, reason_of, write_parquet
from auditor.errors import RunNotWritableError
from auditor.inventory.estimates import Tallies
from auditor.inventory.folder import CARRIED, PLAN
from auditor.inventory.views import define_lines

_NAMES = ("product_key", "device_name", "iot_id")


def tally_sample(folder: Path) -> Tallies:
    """What a sample has shown so far, from the plan and the lines of its run folder; how large strata are is not told.

    Raises:
        RunNotWritableError: they cannot be read, so the run cannot go on.
    """
    tallies = Tallies()
    database = open_database(None, READING_MEMORY, READING_THREADS)
    try:
        define_lines(database, folder)
        columns = "p.account, p.product_key AS stratum, l.product_key, l.modules"
        drawn = f"SELECT {columns} FROM (FROM planned WHERE why = 'sample')"
        met = " UNION ALL ".join(
            f"{drawn} p JOIN lines l ON p.account = l.account AND {on}"
            for on in (
                "p.iot_id = l.iot_id",
                "p.iot_id IS NULL AND p.product_key = l.product_key AND p.device_name = l.device_name",
            )
        )
        database.execute(f"CREATE TABLE met AS {met}")
        for account, key, devices in database.execute(
            "SELECT account, stratum, count(*) FROM met GROUP BY ALL"
        ).fetchall():
            tallies.sampled[account, key] = devices
        for account, stratum, key, name, version, devices in database.execute(
            "SELECT account, stratum, product_key, module.module_name, module.module_version, count(*) "
            "FROM (SELECT *, unnest(modules) AS module FROM met) GROUP BY ALL"
        ).fetchall():
            tallies.add((account, stratum), (account, key), name, version, devices)
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{folder}: cannot be read: {reason_of(error)}") from error
    finally:
        database.close()
    return tallies


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
