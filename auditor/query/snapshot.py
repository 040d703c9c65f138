"""A run as it is now, in Parquet files that do not change: its own if it is sealed, else copies of its lines."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.models import RunWarning
from auditor.query.describe import warning_objects
from auditor.query.warnings import completeness_warnings, integrity_warnings
from auditor.runs.folder import DEVICES, FLEET, MODULES, TEXT_COLUMNS, is_sealed
from auditor.runs.inventory import SourceCounts, count_devices, count_sources, coverage_head
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.views import define_live_views, define_sealed_views
from auditor.storage.database import Database, error_reason, open_database, parquet, with_enough_memory, write_parquet
from auditor.storage.tables import translate_read_errors


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run's rows in files that do not change while they are read.

    Attributes:
        counts: devices by state, counted from the files.
        fleet: Parquet file of the fleet as it was configured.
        devices, modules: Parquet files with a row for each device, and for each module that a device reports.
        warnings: why the run's numbers do not cover the whole fleet, or are not reliable.
        tampered: whether a file differs from the one that was sealed.
        sources: numbers of carried and of unsampled devices, and the time of the oldest answer.
    """

    folder: Path
    manifest: Manifest
    counts: DeviceCounts
    fleet: Path
    devices: Path
    modules: Path
    warnings: tuple[RunWarning, ...]
    tampered: bool
    sources: SourceCounts = field(default_factory=SourceCounts)

    @property
    def coverage(self) -> dict[str, object]:
        """The head of JSON documents about the run: its name and state, device counts and warnings."""
        about = {"run": self.folder.name, "state": self.manifest.state, "started_at": self.manifest.started_at}
        return coverage_head(self.counts, self.sources) | about | {"warnings": warning_objects(self.warnings)}


def open_snapshot(folder: Path, work: Path) -> RunSnapshot:
    """Open a run's rows as they are now. Those of an unsealed run are copied to ``work``, and read from there.

    Raises:
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: ``work`` cannot be written.
    """
    manifest = read_manifest(folder)
    sealed = is_sealed(folder, manifest)
    if not sealed:
        _write_rows(folder, work)
    source = folder if sealed else work
    with translate_read_errors(folder), open_database() as database:
        define_sealed_views(database, source)
        for name, columns in TEXT_COLUMNS.items():
            _require_text(database, folder, source / name, columns)
        counts, sources = count_devices(database), count_sources(database)
    integrity = integrity_warnings(folder, manifest, counts)
    warnings = (*completeness_warnings(folder, manifest, counts, sources.unsampled), *integrity)
    files = (folder / FLEET, source / DEVICES, source / MODULES)
    return RunSnapshot(folder, manifest, counts, *files, warnings, bool(integrity), sources)


def _write_rows(folder: Path, work: Path) -> None:
    def write(memory: str) -> None:
        # Not in `work` itself: the views' own files have the names of the sealed ones.
        with TemporaryDirectory(dir=work) as views, open_database(Path(views), memory) as database:
            define_live_views(database, folder, Path(views))
            for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
                write_parquet(database, f"FROM {view}", work / name)

    try:
        work.mkdir(parents=True, exist_ok=True)
        with_enough_memory(write)
    except (OSError, duckdb.OutOfMemoryException) as error:
        raise RunNotWritableError(f"{work}: {folder.name} cannot be read into it: {error_reason(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        # Only an error of a file in `work` is about the disk; others may quote a path of it as well.
        if isinstance(error, duckdb.IOException) and str(work) in str(error):
            raise RunNotWritableError(f"{work}: cannot be written: {error_reason(error)}") from error
        raise RunFolderError(f"{folder}: cannot be read: {error_reason(error)}") from error


def _require_text(database: Database, folder: Path, path: Path, columns: tuple[str, ...]) -> None:
    described = database.execute(f"DESCRIBE FROM {parquet(path)}").fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    if any(kinds.get(column) != "VARCHAR" for column in columns):
        raise RunFolderError(f"{folder}: cannot be read: {path.name} does not have the columns of a run")
