"""How old a run's answers are: those that it asked for itself, and those that it carried from earlier runs."""

from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Ages:
    """Devices with a conclusive answer, by when it was given.

    Attributes:
        fleet: all devices, those without an answer too.
        asked: devices that the run asked itself.
        day: devices whose answer is carried, and was at most a day old when the run began.
        week: those whose answer was older, and at most seven days old.
        older: those whose answer was older than that, or has no time that can be read.
        first, median, last: when the oldest answer was given, that which half of them are younger than, and the newest;
            None without any.
    """

    fleet: int
    asked: int
    day: int
    week: int
    older: int
    first: datetime | None
    median: datetime | None
    last: datetime | None

    @property
    def carried(self) -> int:
        """Devices whose answer is carried."""
        return self.day + self.week + self.older


def read_ages(database: duckdb.DuckDBPyConnection, began: str) -> Ages:
    """The ages of a run's answers, from the view ``devices``.

    Args:
        database: with this view.
        began: when the run began, as its manifest has it.
    """
    # Somebody else's file may hold anything under that name.
    read = (
        "SELECT source, status IN ('ok', 'empty', 'not_found') AS answered, "
        "epoch(try_cast(audited_at AS TIMESTAMP)) AS point, epoch(try_cast($1 AS TIMESTAMP)) AS began FROM devices"
    )
    carried = "FILTER (answered AND source = 'carried' AND coalesce(began - point, 'inf') {})"
    row = database.execute(
        "SELECT count(*), count(*) FILTER (answered AND source = 'asked'), "
        f"count(*) {carried.format(f'<= {_DAY}')}, "
        f"count(*) {carried.format(f'> {_DAY} AND began - point <= {7 * _DAY}')}, "
        f"count(*) {carried.format(f'> {7 * _DAY}')}, "
        "min(point) FILTER (answered), quantile_disc(point, 0.5) FILTER (answered), max(point) FILTER (answered) "
        f"FROM ({read})",
        [began],
    ).fetchone()
    if row is None:
        return Ages(0, 0, 0, 0, 0, None, None, None)
    return Ages(*row[:5], *(_point(seconds) for seconds in row[5:]))


def _point(seconds: float | None) -> datetime | None:
    """A time of the database; None for one before or after all years of a calendar."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
