"""The proof that a run is whole: everything recomputed from the files, compared with what the run says of itself."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import RunNotWritableError
from auditor.runs.estimates import count_rechecked, count_unreached
from auditor.runs.folder import (
    ANSWERED,
    CARRIED,
    DEVICES,
    FAILED,
    FLEET,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    PLAN,
    PRODUCTS,
    SEALED,
)
from auditor.runs.manifest import DeviceCounts, Manifest, file_facts, read_manifest
from auditor.runs.seal import (
    carried_of,
    count_devices,
    count_failures,
    count_never_activated,
    count_sources,
    files_of,
    write_inventories,
)
from auditor.runs.views import define_live_views, define_products, define_sealed_views, number
from auditor.storage.database import open_database, reason_of, with_enough_memory

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def verify(folder: Path, spill: Path | None = None) -> list[str]:
    """What does not hold in a run folder, a sentence each; none when every number follows from the files.

    Args:
        folder: the run folder.
        spill: where to put a temporary folder of about the size of the run's Parquet files, instead of the system's.

    Raises:
        RunFolderError: the folder has no readable manifest.
        RunNotWritableError: the temporary folder cannot be written, so nothing is known.
    """
    manifest = read_manifest(folder)
    try:
        return with_enough_memory(lambda memory: list(_problems(folder, manifest, spill, memory)))
    except duckdb.OutOfMemoryException as error:
        raise RunNotWritableError(f"{folder}: cannot be verified: {reason_of(error)}") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise RunNotWritableError(f"{folder}: cannot be verified: {error.strerror}") from error
        return [f"{folder.name}: cannot be verified: {error.strerror}"]


def _problems(folder: Path, manifest: Manifest, where: Path | None, memory: str) -> Iterator[str]:
    missing = [name for name in (FLEET, ANSWERED, FAILED) if not (folder / name).is_file()]
    yield from (f"{name}: is missing" for name in missing)
    if missing:
        return
    yield from _digests(folder, manifest)
    with TemporaryDirectory(prefix=".verifying-", dir=where) as spill:
        database = open_database(Path(spill), memory)
        try:
            define_live_views(database, folder, Path(spill))
            yield from _states(database, folder, manifest)
            if manifest.state == "running":
                yield f"{folder.name}: is running or was killed; it is not sealed"
            elif manifest.finished_at is None:
                yield f"{folder.name}: was stopped before its end; it is not sealed"
            elif all((folder / name).is_file() for name in SEALED):
                yield from _sealed(database, folder, Path(spill), memory)
        except duckdb.OutOfMemoryException:
            raise
        except (duckdb.Error, UnicodeDecodeError) as error:
            if spill in str(error):  # what cannot be written there says nothing of the run
                raise RunNotWritableError(f"{folder}: cannot be verified: {reason_of(error)}") from error
            yield f"{folder.name}: a file cannot be read: {reason_of(error)}"
        finally:
            with contextlib.suppress(duckdb.Error):
                database.close()


def _digests(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {facts.name: facts for facts in manifest.files}
    known = (*dict.fromkeys((*files_of(folder), *({PRODUCTS, PLAN, CARRIED} & set(listed)))),)
    yield from (f"run.json: lists {name[:80]!r}, which is no file of a run" for name in listed if name not in known)
    for name in known:
        facts = listed.get(name)
        if facts is None:
            if manifest.finished_at is not None:
                yield f"{name}: is not listed in the manifest"
        elif not (folder / name).is_file():
            yield f"{name}: is missing"
        elif file_facts(folder / name) != facts:
            yield f"{name}: is not the file that was sealed (its digest differs)"
    if file_facts(folder / FLEET).sha256 != manifest.fleet.sha256:
        yield f"{FLEET}: is not the fleet that was asked for (its digest differs)"


def _states(database: duckdb.DuckDBPyConnection, folder: Path, manifest: Manifest) -> Iterator[str]:
    """Every device of the fleet in exactly one state, every line about a device of the fleet, counts as stated."""
    fleet = number(database, "SELECT count(*) FROM fleet")
    # In a fleet that names one device both ways, one row may be answered by the line of the other, failed itself.
    failure = "code IS NOT NULL" if _mixed(database) else "status = 'failed'"
    known = "status IN ('ok', 'empty', 'not_found') AND source"
    conditions = ("true", f"{known} = 'asked'", f"{known} = 'carried'", failure)
    rows, answered, carried, failed = (
        number(database, f"SELECT count(*) FILTER ({condition}) FROM devices") for condition in conditions
    )
    if fleet != manifest.fleet.devices:
        yield f"{FLEET}: has {fleet} devices, the manifest says {manifest.fleet.devices}"
    if rows != fleet:
        yield f"{ANSWERED}, {FAILED}: {rows - fleet} more lines than devices: {_twice(database)}"
    came = (
        (ANSWERED, "answered WHERE source = 'asked'", answered),
        (CARRIED, "answered WHERE source = 'carried'", carried),
        (FAILED, "failures", failed),
    )
    for name, view, found in came:
        read = number(database, f"SELECT count(*) FROM {view}")
        lines = read if name == CARRIED else _line_count(folder / name)
        if lines > read and manifest.state != "running":  # lines may have come since
            yield f"{name}: {lines - read} of {lines} lines cannot be read"
        if read > found:
            yield f"{name}: {read - found} lines are about no device of the fleet, or one that was answered"
    odd = "total <> modules OR (status = 'ok') <> (modules > 0)"
    if wrong := number(database, f"SELECT count(*) FROM answered WHERE ({odd}) IS NOT FALSE"):
        yield f"{ANSWERED}: {wrong} lines contradict themselves (status, total and modules)"
    if (counted := count_devices(database)) != manifest.devices and manifest.state != "running":
        yield f"run.json: says {_shown(manifest.devices)}; the files say {_shown(counted)}"
    if manifest.finished_at is not None and count_failures(database) != manifest.failures:
        yield f"run.json: its failures by code do not follow from {FAILED}"
    yield from _listings(database, manifest)
    yield from _choice(database, manifest)
    if manifest.state == "complete" and counted.unanswered:
        yield f"run.json: says complete, but {counted.unanswered} devices failed or are pending"


def _listings(database: duckdb.DuckDBPyConnection, manifest: Manifest) -> Iterator[str]:
    """What the manifest says of fleets that the platform listed, and of devices that were never activated."""
    if manifest.finished_at is not None and count_never_activated(database) != manifest.never_activated:
        yield f"run.json: says that {manifest.never_activated} were never activated; the files say otherwise"
    for listing in manifest.listings:
        by_status = database.execute(
            "SELECT coalesce(device_status, ''), count(*) FROM fleet WHERE account = ? GROUP BY ALL", [listing.account]
        ).fetchall()
        if listing.state != "pending" and dict(by_status) != listing.statuses:
            yield f'{FLEET}: has other devices of account "{listing.account}" than the manifest says were listed'


def _choice(database: duckdb.DuckDBPyConnection, manifest: Manifest) -> Iterator[str]:
    """What the manifest says of answers that were carried, of devices that were not drawn, and of rechecks."""
    if manifest.finished_at is None:
        return
    if count_sources(database) != (manifest.carried, manifest.unsampled, manifest.oldest):
        told = f"{manifest.carried} were carried and {manifest.unsampled} not drawn"
        yield f"run.json: says that {told}; the files do not"
    choice = manifest.choice
    recheck, unreached = (None, 0) if choice is None else (choice.recheck, choice.unreached)
    if count_unreached(database) != unreached:
        yield f"run.json: says that {unreached} were chosen and not reached; {PLAN} and {CARRIED} do not"
    if count_rechecked(database, carried_of(choice)) != recheck:
        yield f"run.json: how often carrying was wrong does not follow from {PLAN} and {ANSWERED}"


def _sealed(live: duckdb.DuckDBPyConnection, folder: Path, work: Path, memory: str) -> Iterator[str]:
    sealed = open_database(work, memory)
    try:
        define_sealed_views(sealed, folder)
        define_products(sealed, folder)
        for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
            if _fingerprint(live, view) != _fingerprint(sealed, view):
                yield f"{name}: does not follow from {ANSWERED} and {FAILED}"
        if _columns(live, "inventory") != _columns(sealed, "inventory"):
            return  # dates or bytes for text, which was just said: there is no inventory of them
        # From the sealed rows: that these follow from the lines was just shown.
        write_inventories(sealed, folder, work)
        for name in (INVENTORY_JSON, INVENTORY_CSV):
            if file_facts(work / name) != file_facts(folder / name):
                yield f"{name}: does not follow from {MODULES}"
    finally:
        sealed.close()


def _fingerprint(database: duckdb.DuckDBPyConnection, view: str) -> tuple[object, ...]:
    """A view's rows as a multiset, in constant memory: how many, and the sum of their 64-bit hashes."""
    columns = _columns(database, view)
    names = ", ".join('"' + name.replace('"', '""') + '"' for name, _ in columns)
    counted = database.execute(f"SELECT count(*), sum(hash({names})::HUGEINT) FROM {view}").fetchone()
    return (columns, counted)


def _columns(database: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str]]:
    """A view's columns and their types, in the order of their names."""
    return sorted((str(name), str(kind)) for name, kind, *_ in database.execute(f"DESCRIBE {view}").fetchall())


def _line_count(path: Path) -> int:
    """Lines of a file; a torn last one, without a line break, is not one yet."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _twice(database: duckdb.DuckDBPyConnection) -> str:
    example = database.execute(
        "SELECT coalesce(product_key || '/' || device_name, iot_id) FROM devices "
        "GROUP BY ordinal, 1 HAVING count(*) > 1 LIMIT 1"
    ).fetchall()
    return f"{example[0][0]} stands there twice" if example else "a device stands there twice"


def _mixed(database: duckdb.DuckDBPyConnection) -> bool:
    return number(database, "SELECT count(DISTINCT iot_id IS NULL) FROM fleet") > 1


def _shown(counts: DeviceCounts) -> str:
    return ", ".join(f"{name} {count}" for name, count in asdict(counts).items())
