"""A fleet as a file that ``--fleet`` reads, and where a fleet file and the platform differ."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

import duckdb

from auditor.database import ROW_GROUP, open_database, parquet, quoted, reason_of
from auditor.errors import RunNotWritableError
from auditor.fleet.rows import FLEET_COLUMNS
from auditor.model import DeviceStatus

FleetFormat = Literal["csv", "jsonl", "parquet"]

_TIMES = [name for name, kind in FLEET_COLUMNS.items() if kind == "TIMESTAMP"]

_OPTIONS: dict[FleetFormat, str] = {
    "csv": "FORMAT csv, HEADER",
    "jsonl": "FORMAT json",
    "parquet": f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}",
}


def write_fleet(fleet: Sequence[Path], out: Path, form: FleetFormat) -> None:
    """Writes a fleet with all that was listed of it; names stand there as they are, so that they can be asked for.

    Args:
        fleet: files like ``fleet.parquet``, one after another.
        out: the file to write.
        form: how.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    texts = ", ".join(f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%gZ') AS {name}" for name in _TIMES)
    times = "" if form == "parquet" else f"REPLACE ({texts})"
    database = open_database()
    try:
        database.execute(
            f"COPY (SELECT {', '.join(FLEET_COLUMNS)} FROM (SELECT * {times} FROM {parquet(*fleet)})) "
            f"TO {quoted(out)} ({_OPTIONS[form]})"
        )
    except duckdb.Error as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        database.close()


def differences(
    given: Path, wanted: Path, listed: Path, unsure: Collection[str], *, asked: Collection[str] | None
) -> str:
    """The SQL for where a fleet file and the platform differ: a row for each device that is not in both.

    A device of the file is known if what it would be asked by is: its iot_id, or else both names. ``unknown``: the
    platform does not list it. ``missing``: listed and wanted, and not in the file. ``not_seen``: not listed, and of a
    product that was not listed whole, or was not asked for, so nothing is known.

    Args:
        given: the file, as ``write_snapshot`` wrote it.
        wanted: what is listed and wanted.
        listed: what is listed.
        unsure: products of which devices are missing in the list.
        asked: products that were asked for; None: all.
    """
    file, all_listed, by_id, by_name = parquet(given), parquet(listed), "(iot_id)", "(product_key, device_name)"
    with_id, without = f"(FROM {file} WHERE iot_id IS NOT NULL)", f"(FROM {file} WHERE iot_id IS NULL)"
    not_listed = (
        f"FROM {with_id} ANTI JOIN {all_listed} USING {by_id} UNION ALL BY NAME "
        f"FROM {without} ANTI JOIN {all_listed} USING {by_name}"
    )
    missing = f"FROM {parquet(wanted)} ANTI JOIN {with_id} USING {by_id} ANTI JOIN {without} USING {by_name}"
    doubtful = [f"product_key IN ({_literals(unsure)}) OR product_key IS NULL"] if unsure else []
    if asked is not None:
        among = f"product_key NOT IN ({_literals(asked)})" if asked else "true"
        doubtful.append(f"product_key IS NULL OR {among}")
    verdict = f"CASE WHEN {' OR '.join(doubtful)} THEN 'not_seen' ELSE 'unknown' END" if doubtful else "'unknown'"
    columns = "account, product_key, device_name, iot_id"
    return (
        f"SELECT {verdict} AS difference, {columns}, NULL::VARCHAR AS device_status FROM ({not_listed}) UNION ALL "
        f"SELECT 'missing', {columns}, device_status FROM ({missing}) ORDER BY ALL"
    )


def _literals(names: Collection[str]) -> str:
    return ", ".join("'" + each.replace("'", "''") + "'" for each in names)


def counts_by_product(fleet: Sequence[Path]) -> str:
    """The SQL for how many devices each product has, by status."""
    by_status = ", ".join(
        f"count(*) FILTER (device_status = '{each}') AS {each.lower()}" for each in get_args(DeviceStatus)
    )
    return f"SELECT account, product_key, count(*) AS devices, {by_status} FROM {parquet(*fleet)} GROUP BY ALL"
