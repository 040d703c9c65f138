"""Verification of a run: every number is recomputed from the files and compared with the manifest."""

import errno
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.runs.estimates import count_not_reached, estimate_outdated, read_recheck
from auditor.runs.folder import (
    CARRIED,
    CHANGES,
    COMPRESSED_RESULTS,
    DEVICES,
    FAILURES,
    FIRMWARE,
    FLEET,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    READ_BY_QUERIES,
    RESULTS,
    SEALED,
    SELECTED,
    TASKS,
    results_name,
    sealed_file_names,
)
from auditor.runs.inventory import (
    count_aliases,
    count_devices,
    count_failures,
    count_never_activated,
    count_sources,
)
from auditor.runs.journal import count_lines
from auditor.runs.locking import was_killed
from auditor.runs.manifest import DeviceCounts, Manifest, file_info, read_manifest
from auditor.runs.seal import write_inventories
from auditor.runs.views import (
    QUERIED,
    ReleaseCounts,
    count_releases,
    define_live_views,
    define_products,
    define_releases,
    define_sealed_views,
    parquet_of_run,
)
from auditor.storage.compressed import check_compressed
from auditor.storage.database import Database, borrow_database, error_reason, scalar, sql_identifier, with_enough_memory
from auditor.storage.descriptors import pin_files
from auditor.storage.files import private_folder

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def verify_run(folder: Path, spill: Path | None = None) -> list[str]:
    """Return what is wrong with a run folder, a sentence each; an empty list if every number follows from the files.

    It needs a temporary folder of about the size of the run's Parquet files, in ``spill`` or the system's one.

    Raises:
        RunFolderError: the folder has no readable manifest.
        RunNotWritableError: the temporary folder cannot be written, so the run was not verified.
    """
    manifest = read_manifest(folder)
    try:
        return with_enough_memory(lambda memory: list(_problems(folder, manifest, spill, memory)))
    except duckdb.OutOfMemoryException as error:
        raise RunNotWritableError(f"{folder}: cannot be verified: {error_reason(error)}") from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise RunNotWritableError(f"{folder}: cannot be verified: {error.strerror}") from error
        return [f"{folder.name}: cannot be verified: {error.strerror}"]


def _problems(folder: Path, manifest: Manifest, parent: Path | None, memory: str) -> Iterator[str]:
    results = results_name(folder)
    missing = [name for name in (FLEET, results, FAILURES) if not (folder / name).is_file()]
    yield from (f"{name}: is missing" for name in missing)
    if missing:
        return
    yield from _check_digests(folder, manifest)
    if (damage := _describe_damage(folder / results)) is not None:
        yield damage
        return
    # In a run folder, it has a name that a resume removes.
    place = private_folder("verify") if parent is None else TemporaryDirectory(prefix=".verifying-", dir=parent)
    with place as name:
        spill, files = Path(name), folder
        try:
            with borrow_database(spill, memory) as database:
                files = pin_files(folder, READ_BY_QUERIES, spill)
                define_live_views(database, files, spill)
                if repeated := _count_repeated_devices(database):
                    yield f"{FLEET}: has {repeated} devices twice, so that a line is about more than one row"
                yield from _check_states(database, folder, manifest)
                yield from _check_aliases(database, manifest)
                yield from _check_releases(database, files, manifest)
                if manifest.state == "running":
                    killed = was_killed(folder, manifest)
                    state = (
                        "was killed, so it is not sealed; resume it" if killed else "is in progress; wait for its end"
                    )
                    yield f"{folder.name}: {state}"
                elif manifest.finished_at is None:
                    yield f"{folder.name}: was stopped before its end; it is not sealed"
                elif all((folder / name).is_file() for name in SEALED):
                    yield from _check_sealed(database, files, folder, spill, memory)
                    yield from _check_changes(database, files, manifest)
        except duckdb.OutOfMemoryException:
            raise
        except (duckdb.Error, UnicodeDecodeError) as error:
            of_run = files != folder and str(files) in str(error)
            if str(spill) in str(error) and not of_run:  # an error of the temporary folder
                raise RunNotWritableError(f"{folder}: cannot be verified: {error_reason(error)}") from error
            yield f"{folder.name}: a file cannot be read: {error_reason(error)}"


def _describe_damage(results: Path) -> str | None:
    """Return why compressed results cannot be read; None if they can. Raise RunFolderError if reading has no bound."""
    if results.name == COMPRESSED_RESULTS:
        try:
            check_compressed(results)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise RunFolderError(f"{results}: cannot be read: {error.strerror}") from error
            return f"{results.name}: {error.strerror}"
    return None


def _check_digests(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {info.name: info for info in manifest.files}
    expected = sealed_file_names(folder, listed)
    yield from (f"run.json: lists {name[:80]!r}, which is no file of a run" for name in listed if name not in expected)
    for name in expected:
        info = listed.get(name)
        if info is None:
            if manifest.finished_at is not None:
                yield f"{name}: is not listed in the manifest"
        elif not (folder / name).is_file():
            yield f"{name}: is missing"
        elif file_info(folder / name) != info:
            yield f"{name}: is not the file that was sealed (its digest differs)"
    if file_info(folder / FLEET).sha256 != manifest.fleet.sha256:
        yield f"{FLEET}: is not the fleet of the run (its digest differs)"


def _check_states(database: Database, folder: Path, manifest: Manifest) -> Iterator[str]:
    """Check that every device has exactly one status, that every line is about a device, and the counts of both."""
    fleet = scalar(database, "SELECT count(*) FROM fleet")
    # If a device has two names in the fleet, one of them may have failed, and has the answer of the other one, too.
    uses_both_names = scalar(database, "SELECT count(DISTINCT iot_id IS NULL) FROM fleet") > 1
    failure = "code IS NOT NULL" if uses_both_names else "status = 'failed'"
    answer = "status IN ('ok', 'empty', 'not_found') AND source"
    conditions = ("true", f"{answer} IN ({QUERIED})", f"{answer} IN ('carried', 'index')", failure)
    counts = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions)
    rows, answered, carried, failed = database.execute(f"SELECT {counts} FROM devices").fetchone() or (0, 0, 0, 0)
    if fleet != manifest.fleet.devices:
        yield f"{FLEET}: has {fleet} devices, the manifest says {manifest.fleet.devices}"
    results = results_name(folder)
    if rows != fleet:
        yield f"{results}, {FAILURES}: {rows - fleet} more lines than devices: {_duplicate(database)}"
    sources = (
        (results, f"answered WHERE source IN ({QUERIED})", answered),
        (CARRIED, "answered WHERE source IN ('carried', 'index')", carried),
        (FAILURES, "failures", failed),
    )
    for name, view, found in sources:
        read = scalar(database, f"SELECT count(*) FROM {view}")
        lines = read if name == CARRIED else count_lines(folder / name)
        if lines > read and manifest.state != "running":  # lines may have been appended meanwhile
            yield f"{name}: {lines - read} of {lines} lines cannot be read"
        if read > found:
            yield f"{name}: {read - found} lines are about no device of the fleet, or one that was answered"
    odd = "total <> modules OR (status = 'ok') <> (modules > 0)"
    if wrong := scalar(database, f"SELECT count(*) FROM answered WHERE ({odd}) IS NOT FALSE"):
        yield f"{results}: {wrong} lines contradict themselves (status, total and modules)"
    if (counted := count_devices(database)) != manifest.devices and manifest.state != "running":
        yield f"run.json: says {_describe_counts(manifest.devices)}; the files say {_describe_counts(counted)}"
    if manifest.finished_at is not None and count_failures(database) != manifest.failures:
        yield f"run.json: its failures by code do not follow from {FAILURES}"
    yield from _check_discovery(database, manifest)
    yield from _check_selection(database, manifest)
    exceeded = manifest.state == "complete" and counted.unanswered > 0
    exceeded |= manifest.state == "within_tolerance" and replace(manifest, devices=counted).exceeds_tolerance
    if exceeded:
        yield f"run.json: says {manifest.state}, but {counted.unanswered} devices failed or are pending"


def _check_aliases(database: Database, manifest: Manifest) -> Iterator[str]:
    """Check the numbers of devices that have the names of another one."""
    if manifest.finished_at is None:
        return
    counted = asdict(count_aliases(database))
    if counted != {name: getattr(manifest.fleet, name) for name in counted}:
        yield f"run.json: its numbers of devices with the names of another one do not follow from {FLEET} and {RESULTS}"


def _check_discovery(database: Database, manifest: Manifest) -> Iterator[str]:
    """Check the numbers of discovered fleets and of devices that were never activated."""
    if manifest.finished_at is not None and count_never_activated(database) != manifest.never_activated:
        yield f"run.json: says that {manifest.never_activated} devices were never activated; the files differ"
    for discovery in manifest.discovery:
        query = "SELECT coalesce(device_status, ''), count(*) FROM fleet WHERE account = ? GROUP BY ALL"
        by_status = dict(database.execute(query, [discovery.account]).fetchall())
        if discovery.state != "pending" and by_status != discovery.statuses:
            yield f'{FLEET}: its devices of account "{discovery.account}" are not those that were discovered'


def _check_selection(database: Database, manifest: Manifest) -> Iterator[str]:
    """Check the numbers of carried results, of devices that are not in the sample, and of the recheck."""
    if manifest.finished_at is None:
        return
    if count_sources(database) != (manifest.carried, manifest.unsampled, manifest.oldest_answer_at):
        counts = f"{manifest.carried} results carried and {manifest.unsampled} devices not in the sample"
        yield f"run.json: says {counts}; the files differ"
    selection = manifest.selection
    recheck, not_reached = (None, 0) if selection is None else (selection.recheck, selection.not_reached)
    if count_not_reached(database) != not_reached:
        yield f"run.json: says that {not_reached} selected devices were not reached; {SELECTED} and {CARRIED} differ"
    if read_recheck(database, selection) != recheck:
        yield f"run.json: its recheck does not follow from {SELECTED} and {RESULTS}"
    outdated = None if selection is None else selection.outdated
    if outdated is not None and estimate_outdated(database, selection, recheck) != outdated:
        yield f"run.json: its number of outdated results does not follow from {SELECTED} and {CARRIED}"


def _check_changes(database: Database, files: Path, manifest: Manifest) -> Iterator[str]:
    """Check the numbers of changes since the previous run."""
    if manifest.changes is None:
        return
    if not (files / CHANGES).is_file():
        yield f"run.json: has numbers of changes, and {CHANGES} is missing"
        return
    rows = parquet_of_run(database, files / CHANGES)
    counts = dict(database.execute(f"SELECT change, count(*) FROM {rows} GROUP BY change").fetchall())
    if counts != manifest.changes.counts:
        yield f"run.json: its numbers of changes do not follow from {CHANGES}"


def _check_releases(database: Database, files: Path, manifest: Manifest) -> Iterator[str]:
    """Check the numbers of firmware, jobs and tasks, if the run read them."""
    if not manifest.releases:
        return
    define_releases(database, files)
    counted = count_releases(database)
    recorded = {each.account: ReleaseCounts(each.firmware, each.jobs, each.tasks) for each in manifest.releases}
    if counted != {account: counts for account, counts in recorded.items() if any(counts)}:
        yield f"run.json: its numbers of released firmware do not follow from {FIRMWARE} and {TASKS}"


def _check_sealed(live: Database, files: Path, folder: Path, work: Path, memory: str) -> Iterator[str]:
    with borrow_database(work, memory) as sealed:
        define_sealed_views(sealed, files)
        define_products(sealed, files)
        for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
            if _fingerprint(live, view) != _fingerprint(sealed, view):
                yield f"{name}: does not follow from {RESULTS} and {FAILURES}"
        if _columns(live, "inventory") != _columns(sealed, "inventory"):
            return  # other types than text, as just reported: there is no inventory of them
        # From the sealed rows, which follow from the lines as just shown.
        write_inventories(sealed, files, work, read_manifest(folder).modules)
        for name in (INVENTORY_JSON, INVENTORY_CSV):
            if file_info(work / name) != file_info(folder / name):
                yield f"{name}: does not follow from {MODULES}"


def _fingerprint(database: Database, view: str) -> tuple[object, ...]:
    """Return a fingerprint of a view's rows as a multiset: their number and the sum of their 64-bit hashes."""
    columns = _columns(database, view)
    names = ", ".join(sql_identifier(name) for name, _ in columns)
    counted = database.execute(f"SELECT count(*), sum(hash({names})::HUGEINT) FROM {view}").fetchone()
    return (columns, counted)


def _columns(database: Database, view: str) -> list[tuple[str, str]]:
    """Return a view's columns and their types, sorted by name."""
    return sorted((str(name), str(kind)) for name, kind, *_ in database.execute(f"DESCRIBE {view}").fetchall())


def _count_repeated_devices(database: Database) -> int:
    """Return how many devices a fleet has in several rows with the same names."""
    names = "account, product_key, device_name, iot_id"
    hashes = f"SELECT hash({names}) AS key FROM fleet GROUP BY key HAVING count(*) > 1"
    suspects = f"SELECT {names} FROM fleet WHERE hash({names}) IN ({hashes}) GROUP BY ALL HAVING count(*) > 1"
    return scalar(database, f"SELECT count(*) FROM ({suspects})")


def _duplicate(database: Database) -> str:
    example = database.execute(
        "SELECT coalesce(product_key || '/' || device_name, iot_id) FROM devices "
        "GROUP BY ordinal, 1 HAVING count(*) > 1 LIMIT 1"
    ).fetchall()
    return f"{example[0][0]} has two lines" if example else "a device has two lines"


def _describe_counts(counts: DeviceCounts) -> str:
    return ", ".join(f"{name} {count}" for name, count in asdict(counts).items())
