"""What is left of a run: the devices of its fleet without a conclusive answer, by a query over its files."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from auditor.database import open_database, reason_of, with_enough_memory, write_parquet
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.inventory.folder import ANSWERED, DeviceCounts
from auditor.inventory.seal import count_devices
from auditor.inventory.states import device_key
from auditor.inventory.views import define_live_views, number
from auditor.model import Device

WORK = ".resuming"
"""A folder in the run folder for what does not fit into memory meanwhile."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left, and what is there.

    Attributes:
        counts: devices by state; those that failed are pending again.
        unsampled: those of the pending that were not drawn into a sample, and are not to be asked.
        requests: how many the answers took.
        known: a device that has answered, for each account that has one.
    """

    counts: DeviceCounts
    unsampled: int
    requests: int
    known: dict[str, Device]


def write_pending(folder: Path, out: Path, account: str | None = None) -> Pending:
    """Writes the devices that are pending or failed, as the fleet names them, into a Parquet file like the fleet's.

    Args:
        folder: the run folder.
        out: the file to write.
        account: whose devices are written; None: all.

    Raises:
        RunFolderError: lines come twice or are about no device of the fleet, so that no audit could end well.
        RunNotWritableError: it cannot be written.
    """
    work = folder / WORK
    try:
        return with_enough_memory(lambda memory: _write_pending(folder, out, work, memory, account))
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{folder}: cannot be resumed: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_pending(folder: Path, out: Path, work: Path, memory: str, account: str | None) -> Pending:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    database = open_database(work, memory)
    try:
        define_live_views(database, folder, work)
        _refuse_odd_lines(database, folder)
        left = (
            "SELECT ordinal FROM devices WHERE status IN ('pending', 'failed') AND source IS DISTINCT FROM 'unsampled'"
        )
        whose = "true" if account is None else f"account = '{account.replace(chr(39), chr(39) * 2)}'"
        query = f"SELECT * FROM fleet SEMI JOIN ({left}) USING (ordinal) WHERE {whose}"
        if number(database, "SELECT count(*) FROM planned"):  # in its order first, then whom it left for another time
            places = f"SELECT {device_key()} AS key, rank AS turn FROM planned"
            ranked = f"({query}) f LEFT JOIN ({places}) ON {device_key()} = key"
            query = f"SELECT f.* FROM {ranked} ORDER BY turn NULLS LAST, ordinal"
        write_parquet(database, query, out)
        counts = count_devices(database)
        return Pending(
            replace(counts, failed=0, pending=counts.unanswered),
            number(database, "SELECT count(*) FROM devices WHERE source = 'unsampled'"),
            number(database, "SELECT coalesce(sum(attempts), 0)::BIGINT FROM answered"),
            _known(database),
        )
    finally:
        database.close()


def _refuse_odd_lines(database: duckdb.DuckDBPyConnection, folder: Path) -> None:
    rows, fleet = (number(database, f"SELECT count(*) FROM {view}") for view in ("devices", "fleet"))
    answered = number(database, "SELECT count(*) FROM devices WHERE status IN ('ok', 'empty', 'not_found')")
    odd = max(rows - fleet, number(database, "SELECT count(*) FROM answered") - answered)
    if odd > 0:
        raise RunFolderError(
            f"{folder}: {ANSWERED} was edited: {odd} of its lines come twice or are about no device of the fleet; "
            "remove them, or begin a new run"
        )


def _known(database: duckdb.DuckDBPyConnection) -> dict[str, Device]:
    rows = database.execute(
        "SELECT DISTINCT ON (account) account, product_key, device_name, iot_id FROM answered "
        "WHERE status = 'ok' AND source = 'asked'"
    ).fetchall()
    return {account: Device(account, *names) for account, *names in rows}
