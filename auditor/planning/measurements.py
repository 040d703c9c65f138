"""Measurements of earlier runs that plans are based on.

These are requests per device, latency, the devices that incremental runs selected, and the error of carried results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from auditor.errors import RunFolderError
from auditor.log import log
from auditor.models import ChangeDetection
from auditor.runs.folder import DEVICES, RunCatalog, StoredRun, find_run
from auditor.runs.selection_info import AccountSelection, Recheck
from auditor.runs.views import parquet_of_run
from auditor.storage.database import borrow_database, error_reason, scratch_database

MAX_REQUESTS_PER_DEVICE = 1_000_000
"""Largest plausible number of requests for one device; a file with more is corrupted."""

MAX_LATENCY = 86_400.0
"""Largest plausible latency in seconds: no timeout is longer."""


@dataclass(frozen=True, slots=True)
class QueriedDevices:
    """Devices of an account with a result or a failure, and the requests for them, with retries.

    ``one_by_one`` are the requests, in a run that reads one module, for devices that it queried one by one.
    """

    devices: int
    requests: int
    one_by_one: int = 0


@dataclass(frozen=True, slots=True)
class RunMeasurements:
    """Measurements of one run, for each account that queried a device. Mean latency in seconds; None: not measured."""

    folder: Path
    queried: Mapping[str, QueriedDevices]
    latency: float | None


def latest_measurements(directory: Path, name: str) -> RunMeasurements | None:
    """Return the measurements of the newest sealed run of a name in a directory; None: there is no such run.

    Runs without queried devices are skipped. So are unreadable runs, which are logged.
    """
    try:
        catalog = RunCatalog(directory, missing_ok=True)
    except RunFolderError as error:
        log.warning("no_earlier_run", reason=str(error))
        return None
    found = None
    for run in catalog.named(name):
        if run.ended and (run.folder / DEVICES).is_file():
            try:
                found = _measure_run(run)
            except RunFolderError as error:
                catalog.unreadable.append(error)
            if found is not None:
                break
    catalog.log_unreadable()
    return found


def _measure_run(run: StoredRun) -> RunMeasurements | None:
    """Return the measurements of a sealed run; None if it queried no device."""
    query = """
      SELECT account, count(*),
        greatest(count(*), sum(attempts)::BIGINT),  -- a device that failed without a request will need one
        coalesce(sum(greatest(attempts, 1)) FILTER (source = 'queried'), 0)::BIGINT
      FROM {devices}
      WHERE source IS DISTINCT FROM 'carried' AND status <> 'pending'
        AND NOT (status = 'empty' AND attempts <= 0)  -- a device that was never activated needs no request
      GROUP BY account"""
    with scratch_database(failure=f"{run.folder}: cannot be read", error=RunFolderError) as database:
        devices = parquet_of_run(database, run.folder / DEVICES)
        rows = database.execute(query.format(devices=devices)).fetchall()
    in_bulk = run.manifest.modules is not None
    queried = {
        account: QueriedDevices(count, requests, one_by_one if in_bulk else 0)
        for account, count, requests, one_by_one in rows
    }
    if any(each.requests > MAX_REQUESTS_PER_DEVICE * each.devices for each in queried.values()):
        raise RunFolderError(f"{run.folder}: cannot be read: {DEVICES} has an implausible number of requests")
    latency = run.manifest.rate.latency
    plausible = latency is not None and 0 < latency <= MAX_LATENCY
    return RunMeasurements(run.folder, queried, latency if plausible else None) if queried else None


def measure_releases(directory: Path, name: str) -> dict[str, tuple[str, int]]:
    """Return the requests for released firmware of each account, in the newest run of a name that sent any.

    With the name of that run's folder. A run that could not read all counts only if no run did.
    """
    try:
        runs = RunCatalog(directory, missing_ok=True).named(name)
    except RunFolderError:  # logged by `latest_measurements`
        return {}
    found: dict[str, tuple[str, int]] = {}
    for complete in (True, False):
        for run in runs:
            for info in run.manifest.releases:
                if info.requests and (not info.problems or not complete):
                    found.setdefault(info.account, (run.folder.name, info.requests))
    return found


CHANGE_DETECTION_RULES: tuple[ChangeDetection, ...] = ("strict", "reconnected")


@dataclass(frozen=True, slots=True)
class IncrementalStats:
    """Statistics of earlier incremental runs with one change-detection rule.

    ``run`` is the folder name of the newest run with a usable number of selected devices, ``selected_fraction`` their
    fraction, 0 to 1, by account, without rechecks. ``recheck_run`` is the newest that measured ``recheck``.
    """

    run: str | None = None
    selected_fraction: Mapping[str, float] = field(default_factory=dict)
    recheck_run: str | None = None
    recheck: Recheck | None = None


@dataclass(frozen=True, slots=True)
class CarryMeasurements:
    """Results that the next run can carry forward: of the run folder named ``run``, with statistics of earlier runs.

    ``answered`` is the number of devices of each account with a result; None: the run cannot be read.
    """

    run: str | None = None
    answered: Mapping[str, int] | None = None
    by_rule: Mapping[ChangeDetection, IncrementalStats] = field(default_factory=dict)


def measure_carry(directory: Path, name: str, since: str | None = None) -> CarryMeasurements:
    """Return which results the next run of a name can carry forward. Only the devices of one run are read.

    ``since`` is the baseline, a run folder; None, ``last`` or ``none``: the newest suitable run that can be read.

    Raises:
        RunFolderError: ``since`` is not a run folder.
    """
    try:
        catalog = RunCatalog(directory, missing_ok=True)
        runs, newest = catalog.named(name), catalog.baseline(name)
    except (OSError, RunFolderError):
        runs, newest = [], None
    if since is not None and since not in {"last", "none"}:
        folder: Path | None = find_run(Path(since))
    else:
        folder = None if newest is None else newest.folder
    by_rule = {rule: _incremental_stats(runs, rule) for rule in CHANGE_DETECTION_RULES}
    if folder is None:
        return CarryMeasurements(by_rule=by_rule)
    return CarryMeasurements(folder.name, _count_answered(folder), by_rule)


def _incremental_stats(runs: Sequence[StoredRun], rule: ChangeDetection) -> IncrementalStats:
    """Return the statistics of the newest runs that ended; a run with a call budget has no usable number of devices."""
    name, fractions, recheck_run, recheck = None, {}, None, None
    for run in runs:
        selection = run.manifest.selection
        if selection is None or selection.change_detection != rule or selection.baseline_run is None or not run.ended:
            continue
        if name is None and selection.max_calls is None:
            found = {each.account: _selected_fraction(each) for each in selection.accounts}
            fractions = {account: fraction for account, fraction in found.items() if fraction is not None}
            name = run.folder.name if fractions else None
        if recheck is None and selection.recheck is not None and selection.recheck.rate is not None:
            recheck_run, recheck = run.folder.name, selection.recheck
    return IncrementalStats(name, fractions, recheck_run, recheck)


def _selected_fraction(selection: AccountSelection) -> float | None:
    devices = selection.carried + sum(selection.selected.values())
    needed = sum(count for reason, count in selection.selected.items() if reason != "recheck")
    return needed / devices if devices else None


def _count_answered(folder: Path) -> dict[str, int] | None:
    """Return how many devices of each account have a result in a sealed run, without those that need no query."""
    query = """
      SELECT account, count(*) FROM {devices}
      WHERE status NOT IN ('pending', 'failed') AND (status <> 'empty' OR attempts > 0 OR source = 'carried')
      GROUP BY account"""
    try:
        with borrow_database() as database:
            devices = parquet_of_run(database, folder / DEVICES)
            return dict(database.execute(query.format(devices=devices)).fetchall())
    except RunFolderError as error:
        log.warning("run_skipped", reason=str(error))
        return None
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        log.warning("run_skipped", reason=f"{folder}: cannot be read: {error_reason(error)}")
        return None
