"""A run as it is now, in Parquet files that do not change: its own if it is sealed, else written from its lines."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.database import open_database, parquet, reason_of, with_enough_memory, write_parquet
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.inventory.folder import (
    ANSWERED,
    DEVICES,
    FAILED,
    FLEET,
    MODULES,
    PRODUCTS,
    DeviceCounts,
    Manifest,
    read_manifest,
)
from auditor.inventory.seal import Sources, count_devices, count_sources, coverage_of, file_facts
from auditor.inventory.tables import reading
from auditor.inventory.views import define_live_views, define_sealed_views

_IDENTITY = ("account", "product_key", "device_name", "iot_id")
_COLUMNS = {DEVICES: (*_IDENTITY, "status"), MODULES: (*_IDENTITY, "module_name", "module_version")}
"""Columns that are text: a Parquet file that somebody else wrote may hold dates or bytes under these names."""


WRONG = 0.01
"""The part of carried answers that is proven to be wrong from which on all numbers of a run are doubted."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A run's rows in files that do not change while they are read.

    Attributes:
        folder: the run folder.
        manifest: what ``run.json`` says.
        counts: devices by state, counted from the files.
        fleet: the fleet as it was asked for, Parquet.
        devices: a row for each device, Parquet.
        modules: a row for each module that a device reports, Parquet.
        doubts: why numbers of this run are not of the whole fleet or not to be relied on, a sentence each.
        tampered: whether one of them is that a file is not the one that was sealed.
        sources: devices whose answers are carried, those that were not drawn, and when the oldest answer was given.
    """

    folder: Path
    manifest: Manifest
    counts: DeviceCounts
    fleet: Path
    devices: Path
    modules: Path
    doubts: tuple[str, ...]
    tampered: bool
    sources: Sources = field(default_factory=Sources)

    @property
    def coverage(self) -> dict[str, object]:
        """What stands before rows in JSON: which run, how whole, and what is to be doubted."""
        about = {"run": self.folder.name, "state": self.manifest.state, "started_at": self.manifest.started_at}
        return coverage_of(self.counts, self.sources) | about | {"doubts": list(self.doubts)}


def freeze(folder: Path, work: Path) -> Frozen:
    """A run's rows as they are now.

    Args:
        folder: the run folder.
        work: a folder for what is written of a run that is not sealed; it must last as long as the rows are read.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: ``work`` cannot be written.
    """
    manifest = read_manifest(folder)
    sealed = is_sealed(folder, manifest)
    if not sealed:
        _write_rows(folder, work)
    source = folder if sealed else work
    with reading(folder):
        database = open_database()
        try:
            define_sealed_views(database, source)
            for name, columns in _COLUMNS.items():
                _require_text(database, folder, source / name, columns)
            counts, sources = count_devices(database), count_sources(database)
        finally:
            database.close()
    strange = tampered(folder, manifest)
    doubts = (*incomplete(folder, manifest, counts, sources.unsampled), *strange)
    files = (folder / FLEET, source / DEVICES, source / MODULES)
    return Frozen(folder, manifest, counts, *files, doubts, bool(strange), sources)


def _write_rows(folder: Path, work: Path) -> None:
    def write(memory: str) -> None:
        # Apart from `work`, which is the caller's: the views' own files have the names of the sealed ones.
        with TemporaryDirectory(dir=work) as views:
            database = open_database(Path(views), memory)
            try:
                define_live_views(database, folder, Path(views))
                for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
                    write_parquet(database, f"FROM {view}", work / name)
            finally:
                database.close()

    try:
        work.mkdir(parents=True, exist_ok=True)
        with_enough_memory(write)
    except (OSError, duckdb.OutOfMemoryException) as error:
        raise RunNotWritableError(f"{work}: {folder.name} cannot be read into it: {reason_of(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        if str(work) in str(error):
            raise RunNotWritableError(f"{work}: cannot be written: {reason_of(error)}") from error
        raise RunFolderError(f"{folder}: cannot be read: {reason_of(error)}") from error


def _require_text(database: duckdb.DuckDBPyConnection, folder: Path, path: Path, columns: tuple[str, ...]) -> None:
    described = database.execute(f"DESCRIBE FROM {parquet(path)}").fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    if any(kinds.get(column) != "VARCHAR" for column in columns):
        raise RunFolderError(f"{folder}: cannot be read: {path.name} has not the columns of a run")


def incomplete(folder: Path, manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None) -> tuple[str, ...]:
    """Why numbers of a run are not of the whole fleet, if they are not.

    Args:
        folder: the run folder.
        manifest: what ``run.json`` says.
        counts: devices by state.
        unsampled: devices that were not drawn, as was counted; None: as ``run.json`` says.
    """
    found = []
    unsampled = manifest.unsampled if unsampled is None else unsampled
    left = counts.pending - unsampled
    unlisted = [f"{folder}: {doubt}" for listing in manifest.listings for doubt in listing.doubts()]
    if unsampled:
        found.append(sampled(folder, counts, unsampled))
    usual = manifest.state == "complete" or bool(unlisted) or (manifest.state == "partial" and unsampled > 0)
    if counts.failed or left or not usual:
        without = f"{counts.failed:,} devices failed and {left:,} are pending"
        found.append(f"{folder} is {manifest.state}: {without}{' of those that were drawn' if unsampled else ''}")
    found += _wrong(folder, manifest)
    if manifest.fleet.left_out:
        found.append(f"{folder} is not of the accounts {', '.join(manifest.fleet.left_out)} (--account)")
    elif manifest.fleet.cut:
        found.append(f"{folder} is of the first {manifest.fleet.devices:,} devices of its fleet alone (--limit)")
    return (*found, *unlisted)


def _wrong(folder: Path, manifest: Manifest) -> Iterator[str]:
    """That what is carried is wrong too often to be passed over, if rechecks prove it."""
    recheck = None if manifest.choice is None else manifest.choice.recheck
    if recheck is not None and recheck.low is not None and recheck.high is not None and recheck.low > WRONG:
        part = f"{recheck.low:.1%} to {recheck.high:.1%}"
        yield f"{folder}: of the answers that it carries {part} are others by now, as those tell that were asked again"


def sampled(folder: Path, counts: DeviceCounts, unsampled: int) -> str:
    """The sentence that a run is a random sample."""
    fleet = counts.ok + counts.empty + counts.not_found + counts.unanswered
    return (
        f"{folder} is a random sample: of {fleet:,} devices {unsampled:,} were not drawn; its shares are estimates "
        "with 95% intervals, and its counts are of the others alone"
    )


def label_of(state: str, counts: DeviceCounts, unsampled: int) -> str:
    """How far a run came, in a word: its state, or that it is a sample, of which all that were drawn have an answer."""
    if not unsampled or state not in ("complete", "partial"):
        return state
    return "sample" if counts.unanswered == unsampled else "partial sample"


def is_sealed(folder: Path, manifest: Manifest) -> bool:
    """Whether a run is read from its Parquet files; else it is from its lines."""
    return manifest.state != "running" and all((folder / name).is_file() for name in _COLUMNS)


def tampered(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files that are not those that were sealed; of those that are read here, ``auditor verify`` looks at all.

    Raises:
        RunFolderError: a file cannot be read.
    """
    facts = {each.name: each for each in manifest.files}
    read = (*_COLUMNS,) if is_sealed(folder, manifest) else (*({ANSWERED, FAILED} & set(facts)),)
    read += (PRODUCTS,) if PRODUCTS in facts and (folder / PRODUCTS).is_file() else ()
    try:
        changed = [name for name in read if file_facts(folder / name) != facts.get(name)]
        if file_facts(folder / FLEET).sha256 != manifest.fleet.sha256:
            changed.append(FLEET)
    except OSError as error:  # gone since: another process may prune
        raise RunFolderError(f"{folder}: cannot be read: {error.strerror}") from error
    gone = [name for name in (*_COLUMNS, PRODUCTS) if name in facts and not (folder / name).is_file()]
    if manifest.state == "running":  # resumed, so its files are set aside
        growing = not all(listing.state == "complete" for listing in manifest.listings)
        gone, changed = [], [name for name in changed if name == FLEET and not growing]
    return (
        *(f"{folder / name} was sealed and is missing" for name in gone),
        *(f"{folder / name} is not the file that was sealed (its digest differs)" for name in changed),
    )
