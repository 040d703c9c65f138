"""A run as it is now, in Parquet files that do not change: its own if it is sealed, else written from its lines."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.query.warnings import incomplete, tampered
from auditor.runs.folder import _COLUMNS, DEVICES, FLEET, MODULES, is_sealed
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.seal import Sources, count_devices, count_sources, coverage_of
from auditor.runs.views import define_live_views, define_sealed_views
from auditor.storage.database import open_database, parquet, reason_of, with_enough_memory, write_parquet
from auditor.storage.tables import reading


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
