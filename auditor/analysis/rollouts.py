"""Rollouts: for each product's module the target version, the share of its devices on it over the runs, and its state.

The target is the version that was released last; where no release is known, the newest version in use by its order, if
there is one. A version in use is one that devices run in the newest run, or that once had the share ``started``: a
version that was rolled back from all devices is still the target. Devices that run a newer version than the target,
such as a beta, count as on it.

All counts are those of the inventories of sealed runs. Only of runs with unanswered devices, the numbers of devices by
product are read from ``devices.parquet``.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from auditor.analysis.history import History, read_history
from auditor.analysis.rollout_states import (
    DEFAULT_THRESHOLDS,
    ROLLOUT_STATES,
    RolloutState,
    RolloutThresholds,
    TargetShare,
    UnknownReason,
    comparable_shares,
    parse_thresholds,
    rollout_state,
)
from auditor.analysis.rollout_targets import (
    UPDATE_STATES,
    NumberedRun,
    define_coverage,
    define_rollout_tables,
    define_update_counts,
    rollout_rows_query,
)
from auditor.config.validation import stored_rollouts
from auditor.query.filters import DeviceFilter
from auditor.runs.folder import RunCatalog, StoredRun, find_run
from auditor.runs.manifest import SCHEMA_VERSION, read_manifest
from auditor.stats.intervals import share_interval
from auditor.stats.projection import ProjectionProblem, project
from auditor.storage.database import Database, result_rows
from auditor.storage.files import private_folder
from auditor.storage.tables import ResultTable, translate_read_errors
from auditor.text.formatting import SECONDS_PER_DAY, parse_manifest_time

MAX_RUNS = 30
"""Runs that are read, the newest ones."""

MAX_ROLLOUTS, MAX_WRITTEN_ROLLOUTS = 5_000, 100_000
"""Rollouts that are returned, and those that are written to a file, the ones with the most devices."""

NoDate = ProjectionProblem | Literal["failed_devices"]
"""Why there is no date: see ``stats.projection``; or so many updates failed that the goal cannot be reached."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A product's module and its target. Numbers are of the newest run.

    Attributes:
        product_name: as the platform lists it; None: unknown.
        devices: devices of the product that report the module.
        target: version that they should run; None: none is known.
        target_source: whether the target was released, or is the newest in use.
        released_at: when the target was released, in UTC; None: unknown.
        on_target: devices that run the target or a newer version.
        behind: the other ones.
        share: fraction on the target; None: no target, or too few devices of the product have an answer.
        low, high: limits of the share if it is imprecise; otherwise both are the share.
        change: change of the share per day since the last run before that counts, as a fraction; runs within a day
            count as a day. None: there is no such run.
        state: see ``analysis.rollout_states``.
        reason: why the state is unknown.
        runs_in_state: newest runs in a row that have this state, of those with a precise share.
        expected_at: date by which the share is expected to be ``done``; None: it is, it does not move, or see
            ``no_date``.
        no_date: why a moving rollout has no date.
        shares: the share by run, the oldest first; None: the run does not count.
        failed, offered, reverted, never_offered: devices behind by their update to the target: it failed; it waits for
            them; it succeeded, and they run another version; there is none. None: no tasks were read.
    """

    account: str
    product_key: str | None
    product_name: str | None
    module_name: str
    devices: int
    target: str | None
    target_source: Literal["released", "newest"] | None
    released_at: datetime | None
    on_target: int
    behind: int
    share: float | None
    low: float | None
    high: float | None
    change: float | None
    state: RolloutState
    reason: UnknownReason | None
    runs_in_state: int
    expected_at: date | None
    no_date: NoDate | None
    shares: tuple[float | None, ...]
    failed: int | None = None
    offered: int | None = None
    reverted: int | None = None
    never_offered: int | None = None


class StateCount(NamedTuple):
    """Rollouts in a state: their number, and the devices and devices behind of all of them."""

    rollouts: int = 0
    devices: int = 0
    behind: int = 0


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rollouts of a run.

    Attributes:
        rollouts: those with the most devices, the largest first.
        by_state: all of them by state.
        started_at: starts of the runs that were read, the oldest first.
        run: name of the folder of the run whose numbers they are; None: no run has any.
        thresholds: those that decided the states.
    """

    rollouts: tuple[Rollout, ...]
    by_state: Mapping[RolloutState, StateCount]
    started_at: tuple[str, ...] = ()
    run: str | None = None
    thresholds: RolloutThresholds = DEFAULT_THRESHOLDS

    @property
    def by_urgency(self) -> list[Rollout]:
        """The rollouts, those first that need attention, and then those with the most devices behind."""
        return sorted(self.rollouts, key=lambda each: (_URGENCY.index(each.state), -each.behind, -each.devices))

    @property
    def count(self) -> int:
        """Number of all rollouts."""
        return sum(each.rollouts for each in self.by_state.values())


def read_rollouts(
    path: str | Path,
    *,
    criteria: DeviceFilter | None = None,
    thresholds: RolloutThresholds | None = None,
    runs: int = MAX_RUNS,
    limit: int = MAX_ROLLOUTS,
) -> Rollouts:
    """Read the rollouts of a run, from it and the runs before it in its directory.

    Args:
        path: a run folder, or a directory of runs, which means its newest run of the fleet that has answers.
        criteria: which devices are counted; see ``read_history``.
        thresholds: when a rollout has which state; None: as in the settings of the run.
        runs: maximum number of runs.
        limit: maximum number of rollouts that are returned.

    Raises:
        RunFolderError: the path is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
        UsageError: no device of any run has a value of the filter.
    """
    folder = find_run(Path(path), "fleet")
    until = StoredRun(read_manifest(folder), folder)
    if folder != Path(path) and not _has_answers(until):
        until = next((run for run in RunCatalog(Path(path)).earlier(*until) if _has_answers(run)), until)
    directory = (folder if folder.name else folder.absolute()).parent
    with read_history(directory, criteria=criteria, limit=runs, until=until) as history:
        found = rollouts_of(history, thresholds=thresholds, limit=limit)
    # A run without answers, or of the first devices, has none: these are of a run before it.
    return found if found.run == until.folder.name else Rollouts((), {}, found.started_at)


def newest_of_fleet(directory: Path, name: str | None) -> StoredRun | None:
    """Return the newest sealed run of a name that covers its fleet and has answers; None if there is none.

    ``name`` None means that of the newest run. Raise RunFolderError if the directory cannot be read.
    """
    catalog = RunCatalog(directory)
    if not catalog.runs:
        return None
    named = catalog.named(catalog.runs[0].manifest.name if name is None else name)
    return next((run for run in named if _has_answers(run) and run.manifest.covers_fleet), None)


def _has_answers(run: StoredRun) -> bool:
    """Return whether a run is sealed with an answer: one that ended before it had any says nothing of a rollout."""
    return run.sealed and run.manifest.devices.answered > 0


def rollouts_of(
    history: History, *, thresholds: RolloutThresholds | None = None, limit: int = MAX_ROLLOUTS
) -> Rollouts:
    """Return the rollouts of the newest run of a history that has answers; see ``read_rollouts``.

    A run that a flag limits to its first devices does not count. Devices behind are not counted by their update in a
    history of selected devices.
    """
    counting = _counting_runs(history)
    started_at = tuple(run.manifest.started_at for run in history.stored)
    if not counting:
        return Rollouts((), {}, started_at)
    newest, run = counting[-1]
    thresholds = thresholds or parse_thresholds(stored_rollouts(run.manifest.settings))
    database = history.cursor()
    counts: Counter[tuple[RolloutState, int]] = Counter()

    def read() -> Iterator[Rollout]:
        calendar = _Calendar(started_at, newest, thresholds)
        for row in result_rows(database.execute(rollout_rows_query(database, counting[-1], thresholds.answered))):
            rollout = _evaluate(_Row(*row), calendar)
            counts.update({(rollout.state, place): number for place, number in enumerate(_numbers(rollout))})
            yield rollout

    with translate_read_errors(run.folder.parent), private_folder("rollouts") as work:
        define_rollout_tables(
            database, counting, thresholds.started, thresholds.selected, work, some_devices=history.selects_devices
        )
        define_coverage(database, counting)
        define_update_counts(database, None if history.selects_devices else counting[-1])
        largest = heapq.nlargest(limit, read(), key=lambda each: each.devices)
    by_state = {state: StateCount(*(counts[state, place] for place in range(3))) for state in ROLLOUT_STATES}
    return Rollouts(tuple(largest), by_state, started_at, run.folder.name, thresholds)


def define_targets(history: History, rows: Path) -> bool:
    """Define ``rollout_versions`` and ``target_marks`` for a last run that has no rollouts, such as one in progress.

    Its targets are those of the runs before it, unless it has newer versions. Return whether any run before it counts.

    Args:
        history: the last run and those before it.
        rows: Parquet file of the last run's versions, with the columns of its inventory.
    """
    counting = _counting_runs(history)
    if not counting:
        return False
    last = history.stored[-1]
    thresholds = parse_thresholds(stored_rollouts(last.manifest.settings))
    with translate_read_errors(last.folder.parent), private_folder("rollouts") as work:
        define_rollout_tables(
            history.cursor(), counting, thresholds.started, thresholds.selected, work,
            some_devices=history.selects_devices, last_rows=rows,
        )  # fmt: skip
    return True


def _counting_runs(history: History) -> list[NumberedRun]:
    runs = enumerate(history.stored)
    return [(at, run) for at, run in runs if _has_answers(run) and run.manifest.fleet.limit is None]


def _numbers(rollout: Rollout) -> StateCount:
    return StateCount(1, rollout.devices, rollout.behind)


class _Row(NamedTuple):
    """A row of ``rollout_rows_query``; see ``Rollout``."""

    account: str
    product_key: str | None
    product_name: str | None
    module_name: str
    target: str | None
    is_released: bool | None
    released_at: datetime | None
    points: list[dict[str, int | None]]
    failed: int | None
    offered: int | None
    reverted: int | None
    never_offered: int | None


class _Calendar:
    """The runs in days since 1970, the number of the newest one, and the thresholds."""

    def __init__(self, started_at: Sequence[str], newest: int, thresholds: RolloutThresholds) -> None:
        times = [parse_manifest_time(text) for text in started_at]
        self.days = [None if time is None else time.timestamp() / SECONDS_PER_DAY for time in times]
        self.date = None if (time := times[newest]) is None else time.date()
        self.newest, self.thresholds = newest, thresholds


def _evaluate(row: _Row, calendar: _Calendar) -> Rollout:
    """Return a rollout from the numbers of its runs."""
    thresholds = calendar.thresholds
    newest = next((point for point in row.points if point["run"] == calendar.newest), None)
    devices, on_target = (newest["reporting"] or 0, newest["on_target"] or 0) if newest is not None else (0, 0)
    by_run = _target_shares(row.points, calendar) if row.target is not None else {}
    last = by_run.get(calendar.newest)
    counted = [by_run[run] for run in sorted(by_run)]
    state: RolloutState = "unknown"
    reason: UnknownReason | None = "no_order" if row.target is None and newest is not None else "few_answers"
    if last is not None:
        state, reason = rollout_state(counted, thresholds)
    expected_at, no_date = None, None
    if last is not None and state == "moving":
        expected_at, no_date = _project(row, devices, counted, calendar)
    return Rollout(
        row.account, row.product_key, row.product_name, row.module_name, devices, row.target,
        None if row.target is None else "released" if row.is_released else "newest",
        row.released_at if row.is_released else None,
        on_target if row.target is not None else 0, devices - on_target if row.target is not None else 0,
        None if last is None else last.share, None if last is None else last.low, None if last is None else last.high,
        _change(counted, thresholds) if last is not None else None,
        state, reason, _runs_in_state(counted, state, thresholds) if last is not None else 0, expected_at, no_date,
        tuple(by_run[run].share if run in by_run else None for run in range(len(calendar.days))),
        row.failed, row.offered, row.reverted, row.never_offered,
    )  # fmt: skip


def _target_shares(points: Sequence[dict[str, int | None]], calendar: _Calendar) -> dict[int, TargetShare]:
    """Return the share of the target by run, of the runs that count.

    Devices that have no answer in all runs are outside: only those in excess of the run with the fewest widen a share.
    """
    unanswered: dict[int, float] = {}
    shares: dict[int, TargetShare] = {}
    for point in points:
        run, reporting, on_target = point["run"] or 0, point["reporting"] or 0, point["on_target"] or 0
        devices, to_answer, answered = point["devices"], point["to_answer"], point["answered"]
        day = calendar.days[run]
        if day is None or not reporting:
            continue
        share = on_target / reporting
        shares[run] = TargetShare(day, share, share, share)
        if devices is None or to_answer is None or answered is None:
            unanswered[run] = 0.0
        elif answered < calendar.thresholds.answered * to_answer:
            del shares[run]
        elif to_answer < devices:
            with_module = min(reporting, answered)
            interval = share_interval(devices, answered, with_module, min(on_target, with_module))
            shares[run] = TargetShare(day, share, min(share, interval.low), max(share, interval.high))
        else:
            unanswered[run] = 1 - answered / to_answer
    least = min(unanswered.values(), default=0.0)
    for run, missing in unanswered.items():
        excess = (missing - least) / (1 - least)
        share = shares[run].share
        shares[run] = TargetShare(shares[run].day, share, share * (1 - excess), share * (1 - excess) + excess)
    return shares


def _change(shares: Sequence[TargetShare], thresholds: RolloutThresholds) -> float | None:
    """Return the change of the share per day since the run before; runs within a day count as a day."""
    earlier, last = comparable_shares(shares[:-1], thresholds), shares[-1]
    if not earlier:
        return None
    before = earlier[-1]
    return (last.share - before.share) / max(1.0, last.day - before.day)


def _runs_in_state(shares: Sequence[TargetShare], state: RolloutState, thresholds: RolloutThresholds) -> int:
    shares = [*comparable_shares(shares[:-1], thresholds), shares[-1]]
    runs = 1
    while runs < len(shares) and rollout_state(shares[: len(shares) - runs], thresholds)[0] == state:
        runs += 1
    return runs


def _project(
    row: _Row, devices: int, shares: Sequence[TargetShare], calendar: _Calendar
) -> tuple[date | None, NoDate | None]:
    """Return the date by which a moving rollout is done, or why there is none."""
    goal = calendar.thresholds.done
    if row.failed is not None and devices - row.failed < goal * devices:
        return None, "failed_devices"
    precise = [*comparable_shares(shares[:-1], calendar.thresholds), shares[-1]]
    lowest = min(range(len(precise)), key=lambda at: (precise[at].share, -at))
    fitted = precise[lowest:]
    projection = project([each.day for each in fitted], [each.share for each in fitted], goal)
    if projection.days is None or calendar.date is None:
        return None, projection.problem
    return calendar.date + timedelta(days=projection.days), None


_TABLE = {
    **dict.fromkeys(("account", "product_key", "product_name", "module_name", "state", "reason", "target"), "VARCHAR"),
    "target_source": "VARCHAR",
    "released_at": "TIMESTAMP",
    **dict.fromkeys(("devices", "on_target", "behind", *UPDATE_STATES), "BIGINT"),
    **dict.fromkeys(("share", "low", "high", "change"), "DOUBLE"),
    "runs_in_state": "BIGINT",
    "expected_at": "DATE",
    "no_date": "VARCHAR",
}
"""Columns of the table of rollouts."""

_URGENCY: tuple[RolloutState, ...] = ("rolled_back", "stalled", "moving", "not_started", "unknown", "done")


def define_rollouts(database: Database, rows: Sequence[Rollout], table: str) -> None:
    """Create or replace a table of rollouts."""
    columns = ", ".join(f"unnest(${at}::{kind}[]) AS {name}" for at, (name, kind) in enumerate(_TABLE.items(), 1))
    values = [[getattr(row, name) for row in rows] for name in _TABLE]
    database.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT {columns}", values)


def rollout_table(history: History, found: Rollouts) -> ResultTable:
    """Return rollouts as a table: what needs attention first, then those with the most devices behind."""
    database = history.cursor()
    define_rollouts(database, found.by_urgency, "rollouts")
    states = {state: count._asdict() for state, count in found.by_state.items()}
    head = {"schema_version": SCHEMA_VERSION, "name": history.name, "run": found.run, "states": states}
    reading = partial(translate_read_errors, history.stored[-1].folder.parent)
    return ResultTable(database, "FROM rollouts", reading=reading, name="rollouts", head=head)
