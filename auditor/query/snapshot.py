"""A run as it is now, in Parquet files that do not change: its own if it is sealed, else copies of its lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.models import RunWarning
from auditor.query.describe import warning_objects
from auditor.query.warnings import completeness_warnings, integrity_warnings
from auditor.runs.folder import DEVICES, FLEET, MODULES, READ_BY_QUERIES, TEXT_COLUMNS, is_sealed, results_name
from auditor.runs.inventory import SourceCounts, count_devices, count_sources, coverage_head
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.recovery import refuse_lost_results
from auditor.runs.views import define_live_views, define_sealed_views, parquet_of_run
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    Database,
    borrow_database,
    error_reason,
    parquet,
    scalar,
    with_enough_memory,
    write_parquet,
)
from auditor.storage.descriptors import pin_files
from auditor.storage.files import private_folder, translate_os_errors
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
        files: folder to read further files of the run from; None: ``folder``.
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
    files: Path | None = None

    def __repr__(self) -> str:
        return f"<RunSnapshot {self.folder.name!r}: {self.manifest.state}, {self.counts}>"

    @property
    def coverage(self) -> dict[str, object]:
        """The head of JSON documents about the run: its name and state, device counts and warnings."""
        about = {"run": self.folder.name, "state": self.manifest.state, "started_at": self.manifest.started_at}
        coverage = coverage_head(self.counts, self.sources, self.manifest.modules)
        return coverage | about | {"warnings": warning_objects(self.warnings)}


def open_snapshot(folder: Path, work: Path) -> RunSnapshot:
    """Open a run's rows as they are now. Those of an unsealed run are copied to ``work``, and read from there.

    Raises:
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: ``work`` cannot be written.
    """
    results = results_name(folder)
    try:
        return _open_snapshot(folder, work)
    except RunFolderError:
        if results_name(folder) == results:
            raise
        return _open_snapshot(folder, work)  # sealing compressed the results meanwhile


@contextmanager
def snapshot_database(purpose: str, folder: Path) -> Iterator[tuple[RunSnapshot, Database, Path]]:
    """Open a run's rows as they are now, and an empty database to query them with; see ``temporary_database``.

    The database is the one that the rows were counted with: another one would take a tenth of a short command.
    """
    with private_folder(purpose) as work:
        run = open_snapshot(folder, work / "rows")
        with borrow_database(work / "spill", READING_MEMORY, READING_THREADS) as database:
            yield run, database, work


def _open_snapshot(folder: Path, work: Path) -> RunSnapshot:
    manifest = read_manifest(folder)
    sealed = is_sealed(folder, manifest)
    with translate_os_errors(f"{folder}: cannot be read", RunFolderError):
        files = pin_files(folder, READ_BY_QUERIES, work)
    if not sealed:
        _write_rows(folder, files, manifest, work)
    source = files if sealed else work
    with translate_read_errors(folder), borrow_database() as database:
        define_sealed_views(database, source)
        parquet_of_run(database, files / FLEET)
        for name, columns in TEXT_COLUMNS.items():
            require_text_columns(database, folder, source / name, columns)
        counts, sources = count_devices(database), count_sources(database)
        if not sealed:
            sent = scalar(database, "SELECT coalesce(sum(attempts), 0)::BIGINT FROM devices WHERE source = 'queried'")
            # The manifest is older than the results.
            requests = replace(manifest.requests, sent=max(sent, manifest.requests.sent))
            manifest = replace(manifest, requests=requests)
    integrity = integrity_warnings(folder, manifest)
    warnings = (*completeness_warnings(folder, manifest, counts, sources.unsampled), *integrity)
    paths = (files / FLEET, source / DEVICES, source / MODULES)
    return RunSnapshot(folder, manifest, counts, *paths, warnings, bool(integrity), sources, files)


def _write_rows(folder: Path, files: Path, manifest: Manifest, work: Path) -> None:
    def write(memory: str) -> None:
        # Not in `work` itself: the views' own files are deleted here.
        with TemporaryDirectory(dir=work) as views, borrow_database(Path(views), memory) as database:
            refuse_lost_results(database, folder, manifest)
            define_live_views(database, files, Path(views))
            for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
                write_parquet(database, f"FROM {view}", work / name)

    try:
        work.mkdir(parents=True, exist_ok=True)
        with_enough_memory(write)
    except (OSError, duckdb.OutOfMemoryException) as error:
        raise RunNotWritableError(f"{work}: {folder.name} cannot be read into it: {error_reason(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        # Only an error of a file in `work` is about the disk; others may quote a path of it as well.
        of_work = str(work) in str(error) and (files == folder or str(files) not in str(error))
        if isinstance(error, duckdb.IOException) and of_work:
            raise RunNotWritableError(f"{work}: cannot be written: {error_reason(error)}") from error
        raise RunFolderError(f"{folder}: cannot be read: {error_reason(error)}") from error


def require_text_columns(database: Database, folder: Path, path: Path, columns: tuple[str, ...]) -> None:
    """Raise RunFolderError unless a file of a run has these columns as text: a foreign file may have others."""
    described = database.execute(f"DESCRIBE FROM {parquet(path)}").fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    if any(kinds.get(column) != "VARCHAR" for column in columns):
        raise RunFolderError(f"{folder}: cannot be read: {path.name} does not have the columns of a run")
