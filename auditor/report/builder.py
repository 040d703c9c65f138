"""Build a report from a run, the earlier runs of the same name, and a policy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import duckdb

from auditor.errors import AuditorError, RunNotWritableError
from auditor.policy.model import Policy
from auditor.query.filters import define_product_names
from auditor.query.run import with_counted_devices
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.report.changes import read_changes
from auditor.report.coverage import read_coverage, read_groups, read_problems, run_labels
from auditor.report.model import (
    CoverageSection,
    GroupSection,
    PolicySection,
    ProblemSection,
    Report,
    RolloutSection,
    SuccessfulRun,
    VersionSection,
)
from auditor.report.policy import read_policy
from auditor.report.rollouts import read_rollout_section
from auditor.report.versions import (
    EarlierRuns,
    define_earlier_rows,
    read_earlier_runs,
    read_versions,
    reported_run,
)
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import RunCatalog, StoredRun, find_run
from auditor.runs.locking import current_state, was_killed
from auditor.runs.manifest import Manifest
from auditor.runs.views import define_sealed_views, products_query
from auditor.storage.database import LARGE_MEMORY, READING_MEMORY, READING_THREADS, error_reason, open_database
from auditor.storage.files import private_folder
from auditor.storage.tables import translate_read_errors


class _RunSections(NamedTuple):
    """Sections read from the run's own database, the folder of the previous run, and other runs that the page names."""

    coverage: CoverageSection
    problems: ProblemSection
    versions: VersionSection
    rollouts: RolloutSection
    previous: Path | None
    groups: GroupSection | None
    newer: Manifest | None
    last_success: SuccessfulRun | None


def build_report(
    run: str | Path,
    *,
    policy: Policy | None = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
    group_by: Sequence[str] = (),
) -> Report:
    """Build the report of a run; a run in progress is reported as it is now.

    Memory is bounded; larger data goes to the system's temporary folder.

    Args:
        run: a run folder, or a directory of runs, which means its newest run.
        policy: the policy to evaluate; None: the report has no policy section.
        directory: the directory of the earlier runs; None: the run's own.
        now: time of the report, for ages and rules; None: the current time.
        group_by: attributes by which devices are counted, too. One that no device has is empty.

    Raises:
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    given = find_run(Path(run))
    folder = given.absolute()
    if given.name in {"", ".."}:  # such as the working directory, whose parent has no name
        given = folder
    earlier = given.parent if directory is None else Path(directory)
    directory = earlier.absolute()
    written_at = (now or datetime.now(UTC)).astimezone(UTC)
    unreadable: list[str] = []
    snapshot, sections = _read_run(folder, directory, group_by, unreadable)
    changes = None
    if sections.previous is not None:
        with _collect_errors(unreadable):
            changes = read_changes(snapshot, sections.previous)
    policy_section = None
    if policy is not None:
        problems: list[str] = []
        with _collect_errors(problems):
            policy_section = read_policy(folder, policy, written_at)
        if problems:
            problem = _without_directories(
                f"the policy could not be evaluated: {problems[0]}", folder.parent, directory
            )
            policy_section = PolicySection(problem=problem)
    unsampled, state = snapshot.sources.unsampled, current_state(folder, snapshot.manifest)
    return Report(
        folder=folder.name,
        path=str(given),
        directory=str(earlier),
        manifest=snapshot.manifest,
        labels=run_labels(state, snapshot.counts, tampered=snapshot.tampered, unsampled=unsampled),
        warnings=snapshot.warnings,
        coverage=sections.coverage,
        versions=sections.versions,
        rollouts=sections.rollouts,
        changes=changes,
        policy=policy_section,
        problems=sections.problems,
        unreadable=tuple(_without_directories(each, folder.parent, directory) for each in unreadable),
        written_at=written_at,
        groups=sections.groups,
        rules=None if policy is None else policy.source,
        newer=sections.newer,
        last_success=sections.last_success,
    )


def _read_run(
    folder: Path, directory: Path, group_by: Sequence[str], unreadable: list[str]
) -> tuple[RunSnapshot, _RunSections]:
    """Read a run, with more memory if names of many megabytes need it."""
    try:
        with translate_read_errors(folder), private_folder("report") as work:
            snapshot = open_snapshot(folder, work / "run")
            read = partial(_read_sections, snapshot, directory, group_by, work, unreadable=unreadable)
            try:
                return snapshot, read(READING_MEMORY)
            except duckdb.OutOfMemoryException:
                unreadable.clear()
                return snapshot, read(LARGE_MEMORY)
    except OSError as error:
        path = error.filename or "the system's temporary folder"
        raise RunNotWritableError(f"{path}: cannot be written: {error_reason(error)}") from error


def _read_sections(
    run: RunSnapshot, directory: Path, group_by: Sequence[str], work: Path, memory: str, *, unreadable: list[str]
) -> _RunSections:
    with open_database(work / "spill", memory, READING_THREADS) as database:
        define_sealed_views(database, run.devices.parent)
        database.execute(f"CREATE TABLE products AS {products_query(run.files or run.folder)}")
        define_product_names(database)
        sample = define_estimates(database, run.files or run.folder)
        coverage = read_coverage(database, run, sample)
        problems = read_problems(database, run.manifest)
        versions = read_versions(database, work)
        earlier, previous, newer, success = EarlierRuns((reported_run(run),)), None, None, None
        with _collect_errors(unreadable):
            catalog = RunCatalog(directory)
            unreadable.extend(f"run skipped: {error}" for error in catalog.unreadable)
            previous, newer = _find_previous(catalog, run), _find_newer(catalog, run.manifest)
            success = _find_success(catalog, run)
            earlier = read_earlier_runs(database, run, directory, work)
        define_earlier_rows(database)
        rollouts = read_rollout_section(database, earlier, None if previous is None else previous.name, work)
        groups = read_groups(database, group_by) if group_by else None
        return _RunSections(coverage, problems, versions, rollouts, previous, groups, newer, success)


def _find_previous(catalog: RunCatalog, run: RunSnapshot) -> Path | None:
    """Return the newest run with answers that the run can be compared with, or else the newest one.

    None: there is none. The catalog may have a copy of the run, which began at the same time.
    """
    earlier = _list_earlier(catalog, run)
    answered = (each for each in earlier if each.manifest.devices.answered)
    return next((each.folder for each in (*answered, *earlier)), None)


def _find_success(catalog: RunCatalog, run: RunSnapshot) -> SuccessfulRun | None:
    """Return the last earlier run that was a success; None: there is none."""
    found = (each for each in _list_earlier(catalog, run) if each.is_success)
    return next((SuccessfulRun(each.folder.name, each.manifest.started_at) for each in found), None)


def _list_earlier(catalog: RunCatalog, run: RunSnapshot) -> list[StoredRun]:
    """Return the earlier runs, the newest first, without a copy of the run itself."""
    started_at = run.manifest.started_at
    return [each for each in catalog.earlier(run.manifest, run.folder) if each.manifest.started_at < started_at]


def _find_newer(catalog: RunCatalog, manifest: Manifest) -> Manifest | None:
    """Return the newest run of the fleet that ended or was killed, if it is newer and no success; None: it is not."""
    of_fleet = (run for run in catalog.named(manifest.name) if run.manifest.covers_fleet)
    ended = (run for run in of_fleet if run.ended or was_killed(run.folder, run.manifest))
    newest = next(filter(catalog.is_possible, ended), None)
    if newest is None or newest.is_success or newest.manifest.started_at <= manifest.started_at:
        return None
    return with_counted_devices(newest).manifest


@contextmanager
def _collect_errors(sentences: list[str]) -> Iterator[None]:
    """Append an error as a sentence, so that the report has the sections that can be read."""
    try:
        yield
    except AuditorError as error:
        sentences.append(str(error))
    except OSError as error:  # such as of a run that is deleted meanwhile
        sentences.append(f"{error.filename or 'a file'}: cannot be read: {error_reason(error)}")


def _without_directories(sentence: str, *directories: Path) -> str:
    """Remove directories from an error message: the report may be sent to people who do not know them."""
    for directory in directories:
        sentence = sentence.replace(f"{directory}/", "")
    return sentence
