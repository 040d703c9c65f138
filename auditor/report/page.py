"""All that the report shows, read from a run, the runs before it and the rules."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import duckdb

from auditor.database import AMPLE_MEMORY, READING_MEMORY, READING_THREADS, open_database, reason_of
from auditor.errors import AuditorError, RunFolderError, RunNotWritableError
from auditor.inventory.folder import find_run
from auditor.inventory.frozen import Frozen, freeze
from auditor.inventory.samples import define_estimates
from auditor.inventory.views import define_sealed_views
from auditor.report.coverage import read_coverage, read_trouble
from auditor.report.data import History, Page, Policy, Shares, Trouble
from auditor.report.past import earlier_runs, labels_of, read_changes, read_past
from auditor.report.shares import read_shares
from auditor.report.whom import Coverage

if TYPE_CHECKING:
    from auditor.inventory.rules import Rules

_Found = tuple[Coverage, Trouble, Shares, History | None, Path | None]


def read_page(
    run: str | Path,
    *,
    rules: "Rules | None" = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
) -> Page:
    """What the report of a run shows; of one that is still running, as it is now.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        run: a run folder, or a folder of runs, whose newest is meant.
        rules: what is asked of the fleet; None: nothing.
        directory: where the runs before it lie; None: where it lies itself.
        now: when the page is written; None: now.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    folder = find_run(Path(run)).absolute()
    around = folder.parent if directory is None else Path(directory).absolute()
    written = (now or datetime.now(UTC)).astimezone(UTC)
    unread: list[str] = []
    problem: list[str] = []
    changes = policy = None
    frozen, (coverage, trouble, shares, history, before) = _read_frozen(folder, around, unread)
    with _or_told(unread):
        changes = None if before is None else read_changes(frozen, before)
    if rules is not None:
        from auditor.report.verdicts import read_policy

        policy = Policy((), 0, 0, (), ())
        with _or_told(problem, "the policy could not be judged: "):
            policy = read_policy(folder, rules, written)
    unsampled = frozen.sources.unsampled
    labels = labels_of(frozen.manifest.state, frozen.counts, tampered=frozen.tampered, unsampled=unsampled)

    def near(doubts: Iterable[str]) -> tuple[str, ...]:
        """The same without the folders that the runs lie in: a page travels, and these mean nothing elsewhere."""
        return tuple(doubt.replace(f"{folder.parent}/", "").replace(f"{around}/", "") for doubt in doubts)

    return Page(
        folder=folder.name, manifest=frozen.manifest, labels=labels, doubts=near(frozen.doubts), coverage=coverage,
        shares=shares, history=history and replace(history, doubts=near(history.doubts)),
        changes=changes and replace(changes, doubts=near(changes.doubts)),
        policy=policy and replace(policy, doubts=near(policy.doubts), problem=next(iter(near(problem)), None)),
        trouble=trouble, unread=near(unread), written_at=written,
    )  # fmt: skip


def _read_frozen(folder: Path, around: Path, unread: list[str]) -> tuple[Frozen, _Found]:
    """The run as it is now, and what ``_read`` finds."""
    try:
        with TemporaryDirectory(prefix="auditor-report-") as temporary:
            work = Path(temporary)
            frozen = freeze(folder, work / "run")
            try:
                return frozen, _read(frozen, around, work, READING_MEMORY, unread)
            except duckdb.OutOfMemoryException:  # of names of many MB, that is
                unread.clear()
                return frozen, _read(frozen, around, work, AMPLE_MEMORY, unread)
    except OSError as error:
        where = error.filename or "the system's temporary folder"
        raise RunNotWritableError(f"{where}: cannot be written: {reason_of(error)}") from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise RunFolderError(f"{folder}: cannot be read: {reason_of(error)}") from error


def _read(run: Frozen, around: Path, work: Path, memory: str, unread: list[str]) -> _Found:
    """What the run's files say, the runs before it, and the last one of these."""
    history = before = None
    database = open_database(work / "spill", memory, READING_THREADS)
    try:
        define_sealed_views(database, run.devices.parent)
        tallies = define_estimates(database, run.folder)
        coverage = read_coverage(database, run, tallies)
        trouble = read_trouble(database, run.manifest)
        shares = read_shares(database, work)
        with _or_told(unread):
            earlier, later, broken = earlier_runs(run, around)
            unread.extend(broken)
            if earlier:
                before = earlier[0][1]
                history = read_past(database, run, shares.modules, around, later=later, work=work)
    finally:
        database.close()
    return coverage, trouble, shares, history, before


@contextmanager
def _or_told(told: list[str], what: str = "") -> Iterator[None]:
    """A past that cannot be read, or rules that cannot be judged, are told of; the page of this run is not lost."""
    try:
        yield
    except AuditorError as error:
        told.append(f"{what}{error}")
    except OSError as error:  # such as of a run that is pruned meanwhile
        told.append(f"{what}{error.filename or 'a file'}: cannot be read: {reason_of(error)}")
