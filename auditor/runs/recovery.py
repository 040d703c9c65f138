"""What is left of a run: the devices of its fleet without a conclusive answer, by a query over its files."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import orjson
import structlog

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.models import Device
from auditor.runs.folder import ANSWERED, FAILED
from auditor.runs.journal import RESERVE
from auditor.runs.manifest import DeviceCounts
from auditor.runs.seal import count_devices
from auditor.runs.views import define_live_views, device_key, number
from auditor.storage.database import open_database, reason_of, with_enough_memory, write_parquet
from auditor.storage.files import cut_torn_line, put_in_place, replace_file, to_disk

log = structlog.get_logger()


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


LEFT = ".left.parquet"
"""The devices that a resumed audit asks, while it does."""


LEFT_OVERS = ("*.settling", ".sealing", ".verifying-*", WORK, LEFT, RESERVE, "*.new")
"""What a process leaves in a run folder that is killed while it begins, asks, seals or verifies."""


def _mend(folder: Path) -> None:
    for pattern in LEFT_OVERS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for live in (ANSWERED, FAILED):
        (folder / live).touch()
    cut_torn_line(folder / ANSWERED)
    _drop_unreadable_lines(folder / ANSWERED)


def _drop_unreadable_lines(path: Path) -> None:
    """Leaves lines out that a broken disk or a careless hand has spoilt; their devices are asked again."""
    with path.open("rb") as file:
        spoilt = sum(1 for line in file if not _is_answer(line))
    if not spoilt:
        return
    log.warning("lines cannot be read and are dropped; their devices are asked again", file=str(path), lines=spoilt)
    new = path.with_name(path.name + ".new")
    with path.open("rb") as file, new.open("wb") as kept:
        kept.writelines(line for line in file if _is_answer(line))
    put_in_place(new, path)


def _is_answer(line: bytes) -> bool:
    """Whether a line is a conclusive answer that does not contradict itself."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    match record:
        case {"account": str(), "status": "ok" | "empty" | "not_found" as status, "modules": list(), "total": int()}:
            modules = record["modules"]
            return bool(record["total"] == len(modules) and (status == "ok") == bool(modules))
    return False


def _set_aside(failures: Path) -> None:
    """Begins the file of failures anew; the old one stays beside it under a number."""
    if failures.stat().st_size == 0:
        return
    numbered = ((old.name.split(".")[1], old) for old in failures.parent.glob("failures.*.jsonl"))
    before = {int(number): old for number, old in numbered if number.isdecimal()}
    # Never missing, and never lost: for a moment both names are there, and longer if the process is killed then.
    if not any(old.samefile(failures) for old in before.values()):
        aside = failures.with_name(f"failures.{max(before, default=0) + 1}.jsonl")
        try:
            aside.hardlink_to(failures)
        except OSError:  # a file system without links; then the next resume begins a missing file anew
            failures.rename(aside)
    replace_file(failures, b"")
    to_disk(failures.parent)
