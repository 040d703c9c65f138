"""The age of a run's results: those that it queried itself, and those carried forward from earlier runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median

from auditor.runs.views import QUERIED
from auditor.storage.database import Database
from auditor.text.formatting import SECONDS_PER_DAY as _DAY

_OVERDUE = 2
"""Usual intervals between runs after which a run is overdue."""

_DEFAULT_INTERVAL, MIN_INTERVAL = timedelta(hours=24), timedelta(hours=1)
"""Usual interval of a run without earlier ones, and the shortest one: runs that follow each other are tests."""


def overdue_interval(starts: Sequence[datetime], now: datetime) -> timedelta | None:
    """Return the usual interval between runs if the newest is overdue; None: it is not.

    ``starts`` are those of the runs, the oldest first.
    """
    intervals = [(later - earlier).total_seconds() for earlier, later in pairwise(starts)]
    usual = max(timedelta(seconds=median(intervals)), MIN_INTERVAL) if intervals else _DEFAULT_INTERVAL
    return usual if starts and now - starts[-1] > _OVERDUE * usual else None


@dataclass(frozen=True, slots=True)
class AnswerAges:
    """Devices with a conclusive answer, by its age.

    Attributes:
        fleet: all devices, including those without an answer.
        queried: devices that the run queried itself.
        day: devices with a carried result that was at most one day old when the run started.
        week: devices with an older carried result, at most seven days old.
        older: devices with a still older carried result, or one without a readable time.
        first, median, last: times of the oldest answer, of the median and of the newest; None without any answer.
    """

    fleet: int
    queried: int
    day: int
    week: int
    older: int
    first: datetime | None
    median: datetime | None
    last: datetime | None

    @property
    def carried(self) -> int:
        """Devices with a carried result."""
        return self.day + self.week + self.older


def read_ages(database: Database, started_at: str) -> AnswerAges:
    """Read the ages of a run's answers from the view ``devices``; ``started_at`` is the start of the run."""
    # A file that another program wrote may hold any text under these names.
    read = (
        "SELECT source, status IN ('ok', 'empty', 'not_found') AS answered, "
        "epoch(try_cast(audited_at AS TIMESTAMP)) AS point, epoch(try_cast($1 AS TIMESTAMP)) AS started FROM devices"
    )
    carried = "FILTER (answered AND source = 'carried' AND coalesce(started - point, 'inf') {})"
    row = database.execute(
        f"SELECT count(*), count(*) FILTER (answered AND source IN ({QUERIED})), "
        f"count(*) {carried.format(f'<= {_DAY}')}, "
        f"count(*) {carried.format(f'> {_DAY} AND started - point <= {7 * _DAY}')}, "
        f"count(*) {carried.format(f'> {7 * _DAY}')}, "
        "min(point) FILTER (answered), quantile_disc(point, 0.5) FILTER (answered), max(point) FILTER (answered) "
        f"FROM ({read})",
        [started_at],
    ).fetchone()
    if row is None:
        return AnswerAges(0, 0, 0, 0, 0, None, None, None)
    return AnswerAges(*row[:5], *(_point(seconds) for seconds in row[5:]))


def _point(seconds: float | None) -> datetime | None:
    """Return a time of the database; None outside the years of the calendar."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
