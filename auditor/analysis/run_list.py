"""The runs of a directory, one row each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from auditor.errors import RunFolderError
from auditor.query.run import with_counted_devices
from auditor.query.run_views import define_runs
from auditor.runs.folder import RunCatalog, StoredRun, refuse_cut_run
from auditor.runs.manifest import MANIFEST, SCHEMA_VERSION
from auditor.storage.database import temporary_database
from auditor.storage.tables import ResultTable, translate_read_errors


@dataclass(frozen=True, slots=True)
class RunList:
    """Runs of a directory, the newest first.

    Attributes:
        runs: the runs; of a deleted one there are its manifest and its changes.
        count: number of all runs that could be listed.
        table: a row for each run; its columns are those of the view ``runs`` of ``auditor sql --runs``.
        unreadable: why a folder could not be read, a sentence each.
    """

    runs: tuple[StoredRun, ...]
    count: int
    table: ResultTable
    unreadable: tuple[str, ...]


@contextmanager
def read_runs(directory: str | Path, *, name: str | None = None, limit: int | None = None) -> Iterator[RunList]:
    """List the runs of a directory, of one name or of all.

    Raises:
        RunFolderError: the directory cannot be read, or has no such run.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    directory = Path(directory)
    refuse_cut_run(directory)
    if (directory / MANIFEST).is_file():
        raise RunFolderError(f"{directory}: is one run; give the directory that contains it")
    catalog = RunCatalog(directory)
    present = {run.folder.name for run in catalog.runs}
    archived = [run for run in catalog.archived() if run.folder.name not in present]
    found = [run for run in (*catalog.runs, *archived) if name is None or run.manifest.name == name]
    unreadable = tuple(map(str, catalog.unreadable))
    if not found:
        names = ", ".join(repr(each) for each in sorted({run.manifest.name for run in catalog.runs})[:10])
        missing = f"contains no run named {name!r}; there are runs named {names}" if names else "contains no run"
        raise catalog.unreadable[0] if catalog.unreadable and not names else RunFolderError(f"{directory}: {missing}")
    shown = tuple(map(with_counted_devices, found[:limit]))
    with temporary_database("runs") as (database, work):
        define_runs(database, shown, work)
        reading, head = partial(translate_read_errors, directory), {"schema_version": SCHEMA_VERSION}
        table = ResultTable(database, "FROM runs", reading=reading, name="runs", head=head)
        yield RunList(shown, len(found), table, unreadable)
