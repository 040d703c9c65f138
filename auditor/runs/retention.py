"""Old runs go, so that a directory of nightly runs does not grow without end; one that is being written never does."""

import secrets
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from auditor.errors import RunFolderError, UsageError
from auditor.runs.folder import runs_in
from auditor.runs.locking import LEAVING, Hold, door, sweep
from auditor.runs.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of a directory of runs.

    Attributes:
        removed: run folders that are gone, or would go.
        skipped: why a folder was left although its turn had come, or could not be judged, a sentence each.
        failed: why a folder could not be deleted, a sentence each.
        kept: how many runs are left.
    """

    removed: tuple[Path, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    kept: int


def prune(directory: str | Path, *, keep: int, dry_run: bool = False) -> Pruned:
    """Deletes all but the newest runs of each name.

    The newest complete run of a whole fleet stays too, however old it is: it is the last whole inventory. A run that is
    being written stays, and so does every folder that is no run. One that was killed or is partial goes in its turn.

    Args:
        directory: a directory of runs.
        keep: runs of each name that stay, 1 or more.
        dry_run: tell what would go, and delete nothing.

    Raises:
        UsageError: ``keep`` is below 1.
        RunFolderError: there is no such directory.
        RunNotWritableError: the file system knows no locks.
    """
    directory = Path(directory)
    if keep < 1:
        raise UsageError(f"keep {keep}: give a number of runs from 1 up")
    runs, broken = runs_in(directory)
    skipped, failed, removed = [str(error) for error in broken], list[str](), list[Path]()
    if not dry_run:
        with door(directory):
            sweep(directory)
    runs.sort(key=lambda run: run[0].name)
    for _, own in groupby(runs, key=lambda run: run[0].name):
        for _, folder in _beyond(list(own), keep):
            try:
                _remove(folder, dry_run=dry_run)
            except RunFolderError as error:
                skipped.append(str(error))
            except OSError as error:
                failed.append(f"{error.filename or folder}: cannot be deleted: {error.strerror}")
            else:
                removed.append(folder)
    return Pruned(tuple(removed), tuple(skipped), tuple(failed), len(runs) - len(removed))


def _beyond(runs: list[tuple[Manifest, Path]], keep: int) -> list[tuple[Manifest, Path]]:
    newest_complete = next((run for run in runs if run[0].state == "complete" and not run[0].fleet.cut), None)
    return [run for run in runs[keep:] if run is not newest_complete]


def _remove(folder: Path, *, dry_run: bool) -> None:
    """Takes a run away in one step, for whoever lists the directory, and then deletes it.

    Raises:
        RunFolderError: a process is writing it.
    """
    leaving = folder.with_name(f"{LEAVING}{folder.name}-{secrets.token_hex(4)}")
    with ExitStack() as holding:
        with door(folder.parent):  # an audit that begins must not take our hold for that of an audit
            holding.enter_context(Hold(folder))
            if dry_run:
                return
            folder.rename(leaving)
        shutil.rmtree(leaving)
