"""Recovery of an interrupted run: repair of its files, and its devices without a conclusive answer."""

import filecmp
import os
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from auditor.errors import RunFolderError
from auditor.log import log
from auditor.models import Device
from auditor.runs.folder import CARRIED, COMPRESSED_RESULTS, FAILURES, RESULTS, results_name
from auditor.runs.inventory import count_devices
from auditor.runs.journal import RESERVE, count_lines, expand_results
from auditor.runs.manifest import MANIFEST, DeviceCounts, Manifest
from auditor.runs.views import define_live_views
from auditor.storage.append_only import cut_torn_line
from auditor.storage.database import (
    Database,
    device_key_sql,
    parquet,
    scalar,
    scratch_database,
    sql_literal,
    translate_errors,
    with_enough_memory,
    write_parquet,
)
from auditor.storage.files import (
    atomic_replace,
    check_regular,
    create_file,
    replace_file,
    translate_os_errors,
)
from auditor.text.shell import format_command

RESUME_WORK = ".resuming"
"""Scratch folder in the run folder."""


@dataclass(frozen=True, slots=True)
class RemainingDevices:
    """What a run has done, and how many of its devices remain.

    Attributes:
        counts: devices by state; failed ones are pending again.
        unsampled: pending devices that are not in the sample.
        requests: requests that the answers took.
        successful_devices: a device that was queried with success, by account.
    """

    counts: DeviceCounts
    unsampled: int
    requests: int
    successful_devices: dict[str, Device]


def write_remaining_devices(folder: Path, out: Path, account: str | None = None) -> RemainingDevices:
    """Write the devices that are pending or failed, of an account or of all, to a Parquet file like the fleet's.

    Raises:
        RunFolderError: the results have duplicate lines, or lines about no device of the fleet.
        RunNotWritableError: it cannot be written.
    """
    with translate_errors(f"{folder}: cannot be resumed"):
        return with_enough_memory(lambda memory: _write_remaining(folder, out, memory, account))


def _write_remaining(folder: Path, out: Path, memory: str, account: str | None) -> RemainingDevices:
    work = folder / RESUME_WORK
    with scratch_database(work, memory=memory) as database:
        define_live_views(database, folder, work)
        _refuse_invalid_lines(database, folder)
        unanswered = "status IN ('pending', 'failed') AND source IS DISTINCT FROM 'unsampled'"
        condition = "true" if account is None else f"account = {sql_literal(account)}"
        query = f"SELECT * FROM fleet SEMI JOIN (FROM devices WHERE {unanswered}) USING (ordinal) WHERE {condition}"
        if scalar(database, "SELECT count(*) FROM selected_devices"):  # they come first, in their order
            ranks = f"SELECT {device_key_sql()} AS key, rank AS selection_rank FROM selected_devices"
            ranked = f"({query}) f LEFT JOIN ({ranks}) ON {device_key_sql()} = key"
            query = f"SELECT f.* FROM {ranked} ORDER BY selection_rank NULLS LAST, ordinal"
        write_parquet(database, query, out)
        counts = count_devices(database)
        return RemainingDevices(
            replace(counts, failed=0, pending=counts.unanswered),
            scalar(database, "SELECT count(*) FROM devices WHERE source = 'unsampled'"),
            scalar(database, "SELECT coalesce(sum(attempts), 0)::BIGINT FROM answered WHERE source = 'queried'"),
            _successful_devices(database),
        )


def _refuse_invalid_lines(database: Database, folder: Path) -> None:
    rows, fleet = (scalar(database, f"SELECT count(*) FROM {view}") for view in ("devices", "fleet"))
    answered = scalar(database, "SELECT count(*) FROM devices WHERE status IN ('ok', 'empty', 'not_found')")
    invalid = max(rows - fleet, scalar(database, "SELECT count(*) FROM answered") - answered)
    if invalid > 0:
        raise RunFolderError(
            f"{folder}: {RESULTS} was edited: {invalid} of its lines are duplicates or about no device of the fleet; "
            "remove them, or start a new run"
        )


def _successful_devices(database: Database) -> dict[str, Device]:
    rows = database.execute(
        "SELECT DISTINCT ON (account) account, product_key, device_name, iot_id FROM answered "
        "WHERE status = 'ok' AND source = 'queried'"
    ).fetchall()
    return {account: Device(account, *names) for account, *names in rows}


REMAINING = ".remaining.parquet"
"""The devices that a resumed audit queries; also the end of the names of files of one account."""

LEFTOVER_PATTERNS = (
    "*.finalizing",
    ".sealing",
    ".verifying-*",
    "auditor-work-*",
    RESUME_WORK,
    REMAINING,
    RESERVE,
    "*.new",
)
"""Files that a killed process may leave in a run folder."""


def repair(folder: Path, counts: DeviceCounts | None = None) -> None:
    """Remove the leftovers of a killed process, and torn or unreadable lines.

    Raises:
        RunFolderError: the folder has a link, a pipe or a device, or the answers that the manifest counts (``counts``)
            have no file any more.
        RunNotWritableError: the file of results cannot be written, or has a second name.
    """
    _refuse_special_files(folder)
    for pattern in LEFTOVER_PATTERNS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    expand_results(folder)
    if counts is not None:
        _refuse_missing_results(folder, counts)
    for live in (RESULTS, FAILURES):
        if not os.path.lexists(folder / live):
            create_file(folder / live)
    with translate_os_errors(f"{folder / RESULTS}: cannot be written"):
        cut_torn_line(folder / RESULTS)
    _drop_unreadable_lines(folder / RESULTS)


def _refuse_special_files(folder: Path) -> None:
    """Refuse links, pipes and devices in a run folder and its working folders, which no audit creates."""
    working = [path for path in folder.iterdir() if path.name.startswith(".") and path.is_dir()]
    for path in (*folder.iterdir(), *(path for each in working if not each.is_symlink() for path in each.iterdir())):
        if not stat.S_ISDIR((found := path.lstat()).st_mode):
            with translate_os_errors(f"{path}: cannot be used", RunFolderError):
                check_regular(found)


def _refuse_missing_results(folder: Path, counts: DeviceCounts) -> None:
    """Refuse a run whose answers were moved away, as a log rotation does: all its devices would be queried again."""
    results = folder / RESULTS
    answers = counts.answered
    if not answers or (folder / CARRIED).exists() or (results.exists() and results.stat().st_size):
        return
    # Without a copy under another name, an empty file is what a power cut in the first seconds of a run leaves.
    copies = _copies_of_results(folder)
    if copies or not results.exists():
        advice = f"rename {copies[0]} to {RESULTS}" if copies else "put the file back"
        raise RunFolderError(
            f"{results}: is missing or empty, but {MANIFEST} counts {answers:,} answers; {advice}, or start a new run"
        )


def refuse_lost_results(database: Database, folder: Path, manifest: Manifest) -> None:
    """Refuse to read an unsealed run that has fewer answers than its manifest counts: its devices are not pending.

    A manifest that was read before its results never counts more of them, unless a file was moved, cut or replaced, or
    the power failed.
    """
    counts, carried = manifest.devices, folder / CARRIED
    answers = counts.answered
    answers -= scalar(database, f"SELECT count(*) FROM {parquet(carried)}") if carried.is_file() else 0
    results = folder / results_name(folder)
    found = count_lines(results, answers) if answers > 0 and os.path.lexists(results) else 0
    if found < answers:
        copies = _copies_of_results(folder)
        restore = f"append it to {copies[0]}, and rename that to {RESULTS}" if copies else "put the file back"
        raise RunFolderError(
            f"{folder / RESULTS} was cut, replaced or rotated: {MANIFEST} counts {answers:,} answers, and {found:,} "
            f"exist; {restore}, or query the devices again: {format_command('auditor resume', folder)}"
        )


def _copies_of_results(folder: Path) -> list[str]:
    """Return the names of files that may be results which were moved away."""
    return sorted({path.name for path in folder.glob(f"{RESULTS}?*")} - {COMPRESSED_RESULTS})


def _drop_unreadable_lines(path: Path) -> None:
    """Drop lines that a broken disk or a manual edit damaged; their devices are queried again."""
    with path.open("rb") as file:
        damaged = sum(1 for line in file if not _is_answer(line))
    if not damaged:
        return
    log.warning("lines_dropped", file=str(path), lines=damaged)
    with atomic_replace(path) as new, path.open("rb") as file, new.open("wb") as kept:
        kept.writelines(line for line in file if _is_answer(line))


def _is_answer(line: bytes) -> bool:
    """Return whether a line is a conclusive answer without contradictions."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    match record:
        case {"account": str(), "status": "ok" | "empty" | "not_found" as status, "modules": list(), "total": int()}:
            modules = record["modules"]
            return bool(record["total"] == len(modules) and (status == "ok") == bool(modules))
    return False


def rotate_failures(failures: Path) -> None:
    """Start an empty file of failures; the old one stays under a number."""
    if failures.stat().st_size == 0:
        return
    numbered = ((old.name.split(".")[1], old) for old in failures.parent.glob("failures.*.jsonl"))
    before = {int(number): old for number, old in numbered if number.isdecimal()}
    # The file is never missing: for a moment there are two copies, and longer if the process is killed then.
    if not before or not filecmp.cmp(before[max(before)], failures, shallow=False):
        numbered_path = failures.with_name(f"failures.{max(before, default=0) + 1}.jsonl")
        with atomic_replace(numbered_path, mode=stat.S_IMODE(failures.stat().st_mode)) as new:
            shutil.copyfile(failures, new)
    replace_file(failures, b"")
