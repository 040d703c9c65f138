"""Deletion of old runs from a directory of runs; a run that is being written is never deleted."""

import secrets
import shutil
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from auditor.errors import RunFolderError, RunNotWritableError, UsageError
from auditor.runs.folder import ARCHIVE, CHANGES, RunCatalog, StoredRun
from auditor.runs.locking import DELETING_PREFIX, RunLock, directory_lock, is_locked, remove_stale_folders
from auditor.runs.manifest import MANIFEST, read_manifest
from auditor.storage.files import atomic_replace, open_contained
from auditor.storage.foreign_access import describe_foreign_access
from auditor.text.formatting import format_utc

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class PruneResult:
    """Result of ``prune_runs``.

    Attributes:
        removed: deleted run folders, or those that would be deleted.
        skipped: why an old or unreadable folder was not deleted, a sentence each.
        failed: why a folder could not be deleted, a sentence each.
        remaining: number of runs that are left.
    """

    removed: tuple[Path, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    remaining: int


def prune_runs(
    directory: str | Path, *, keep: int | None = None, keep_days: int | None = None, dry_run: bool = False
) -> PruneResult:
    """Delete old runs: those that are neither among the newest ``keep`` of their name, nor younger than ``keep_days``.

    The newest successful run of the whole fleet stays, for it is the last full inventory. So do runs being written,
    runs that started in the future, because a clock was wrong, and folders that are no runs. The manifest and the
    changes of a deleted run are kept in ``.changes``, so that questions about the past still have an answer.

    Args:
        directory: a directory of runs.
        keep: number of runs of each name to keep, 1 or more; None: none is kept for its rank.
        keep_days: age below which every run is kept, in days since its start by ``run.json``, 1 or more; None: none is
            kept for its age.
        dry_run: delete nothing.

    Raises:
        UsageError: ``keep`` or ``keep_days`` is below 1, or neither is given.
        RunFolderError: there is no such directory.
        RunNotWritableError: the file system does not support locks.
    """
    directory = Path(directory)
    refuse_limits(keep, keep_days)
    catalog = RunCatalog(directory)
    skipped, failed, removed = [str(error) for error in catalog.unreadable], list[str](), list[Path]()
    if not dry_run:
        with directory_lock(directory):
            remove_stale_folders(directory)
    for name in sorted({run.manifest.name for run in catalog.runs}):
        own = [run for run in catalog.named(name) if catalog.is_possible(run)]
        newest_success = next((run for run in own if run.is_success), None)
        for folder in (run.folder for run in _old_runs(own, keep, keep_days) if run is not newest_success):
            try:
                _remove(folder, dry_run=dry_run)
            except RunFolderError as error:
                skipped.append(str(error))
            except RunNotWritableError as error:
                failed.append(str(error))
            except OSError as error:
                failed.append(f"{error.filename or folder}: cannot be deleted: {error.strerror}")
            else:
                removed.append(folder)
    skipped += [
        f"{run.folder}: started in the future ({run.manifest.started_at}); delete it yourself if that is wrong"
        for run in catalog.runs
        if not catalog.is_possible(run)
    ]
    return PruneResult(tuple(removed), tuple(skipped), tuple(failed), len(catalog.runs) - len(removed))


def refuse_limits(keep: int | None, keep_days: int | None) -> None:
    """Raise UsageError if neither limit is given, or one is below 1."""
    if keep is None and keep_days is None:
        raise UsageError("nothing says which runs to keep; give a number of runs (--keep) or of days (--keep-days)")
    for name, number, unit in (("keep", keep, "runs"), ("keep-days", keep_days, "days")):
        if number is not None and number < 1:
            raise UsageError(f"{name} {number}: give a number of {unit} from 1 up")


def _old_runs(runs: list[StoredRun], keep: int | None, keep_days: int | None) -> list[StoredRun]:
    """Return which runs of one name, the newest first, are old by each of the given limits."""
    rest = runs[keep or 0 :]
    if keep_days is None:
        return rest
    oldest_start = format_utc(max(0, int(time.time()) - keep_days * _DAY))
    return [run for run in rest if run.manifest.started_at < oldest_start]


def _remove(folder: Path, *, dry_run: bool) -> None:
    """Rename a run, so that it leaves the directory in one step, and then delete it, unless it is being written."""
    if dry_run:
        if is_locked(folder):
            raise RunFolderError(f"{folder}: another process is writing this run")
        return
    deleting = folder.with_name(f"{DELETING_PREFIX}{folder.name}-{secrets.token_hex(4)}")
    with ExitStack() as stack:
        with directory_lock(folder.parent):  # a starting audit must not take this lock for that of an audit
            stack.enter_context(RunLock(folder))
            _keep_changes(folder)
            folder.rename(deleting)
        shutil.rmtree(deleting)


def _keep_changes(folder: Path) -> None:
    """Copy a run's changes and manifest to the archive of its directory; nothing if it has no changes."""
    if read_manifest(folder).changes is None or not (folder / CHANGES).is_file():
        return
    kept = folder.parent / ARCHIVE / folder.name
    mode = stat.S_IMODE(folder.stat().st_mode)
    for place in (kept.parent, kept):
        place.mkdir(mode, exist_ok=True)
        if (access := describe_foreign_access(place)) is not None:
            raise RunNotWritableError(f"{place}: {access}, so no changes are kept in it; remove it")
    for name in (CHANGES, MANIFEST):  # a folder without a manifest does not count
        with (
            open_contained(folder, name) as source,
            atomic_replace(kept / name, mode=mode & 0o666) as new,
            new.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
