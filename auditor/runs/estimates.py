"""What a run that asked a random sample tells of its whole fleet, and the intervals in its inventory.

How often it was wrong to carry an answer, by some that were asked all the same; and what is carried unasked.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from auditor.runs.folder import FLEET, PLAN
from auditor.runs.manifest import Recheck
from auditor.runs.views import INVENTORY, device_key
from auditor.stats.intervals import Interval, error_rate
from auditor.stats.stratified import Tallies, read_tallies
from auditor.storage.database import parquet

CONFIDENCE = 0.95
"""How often an interval holds what it is about; ``auditor.inventory.intervals`` is made for it."""


ROWS, STRATA = 1_000, 200_000
"""Versions of which the share of the whole fleet is told at most; fewer in a fleet of many products, for each of them
is looked at for each version."""


FEWEST = 20
"""So many versions are told of whatever the fleet."""


NAMES = 250_000
"""Characters of their names together: what stands before the rows of a file is read at once."""


_DIGITS = 6


@dataclass(frozen=True, slots=True)
class FleetShare:
    """A version of a module, over all products and accounts, by what a sample showed.

    Attributes:
        module_name: the module.
        module_version: the version.
        devices: how many devices were seen to run it.
        fleet: its share of all devices of the fleet.
        module: its share of those that report the module.
    """

    module_name: str
    module_version: str
    devices: int
    fleet: Interval
    module: Interval


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample tells of its fleet.

    Attributes:
        devices: the fleet's.
        drawn: devices that were drawn.
        answered: those of them that were answered.
        known: devices that were never activated, as the platform lists them: these are certain without a question.
        unseen: the most that is likely to be the part of the fleet that runs a version that no answer shows; None
            where nothing was answered.
        fleet: the most frequent versions, the most frequent first.
        left_out: how many others were seen.
    """

    devices: int
    drawn: int
    answered: int
    known: int
    unseen: float | None
    fleet: tuple[FleetShare, ...]
    left_out: int

    @property
    def told(self) -> dict[str, Any]:
        """As it stands in JSON, under the key ``sample``."""
        return {
            "devices": self.devices,
            "drawn": self.drawn,
            "answered": self.answered,
            "known": self.known,
            "confidence": CONFIDENCE,
            "unseen": self.unseen,
            "fleet": [
                {"module_name": each.module_name, "module_version": each.module_version, "devices": each.devices}
                | {"of_fleet": _limits(each.fleet), "of_module": _limits(each.module)}
                for each in self.fleet
            ],
            "left_out": self.left_out,
        }


def is_sample(database: duckdb.DuckDBPyConnection) -> bool:
    """Whether there are devices that were not drawn, by the view ``devices``."""
    return bool(database.execute("SELECT 1 FROM devices WHERE source = 'unsampled' LIMIT 1").fetchall())


def may_be_sample(folder: Path, *, sealed: bool) -> bool:
    """Whether it is worth a look: without a plan nothing was drawn, and a run's lines take long to read."""
    return sealed or (folder / PLAN).is_file()


def define_estimates(database: duckdb.DuckDBPyConnection, folder: Path) -> Tallies | None:
    """Gives the view ``inventory`` of a sampled run the columns ``low`` and ``high``; others keep theirs.

    These are the limits of ``share``, 95 times of a hundred. What is certain has three times the same number.

    Args:
        database: with the views ``devices``, ``modules`` and ``inventory``.
        folder: the run folder, for its fleet.

    Returns:
        What the sample showed; None where the run is none.
    """
    if not is_sample(database):
        return None
    tallies = read_tallies(database, parquet(folder / FLEET))
    found = [
        (*each.version[:2], each.known_as, each.version.module_version, each.interval.low, each.interval.high)
        for each in tallies.shares("product")
    ]
    kinds = ["VARCHAR"] * 4 + ["DOUBLE"] * 2
    names = ("account", "product_key", "known_as", "module_version", "low", "high")
    columns = ", ".join(
        f"unnest(${at}::{kind}[]) AS {name}" for at, (kind, name) in enumerate(zip(kinds, names, strict=True), 1)
    )
    database.execute(
        f"CREATE TABLE estimates AS SELECT {columns}",
        [list(column) for column in zip(*found, strict=True)] or [[]] * len(names),
    )
    # Nothing is known of what somebody else's file has of devices that are none of the fleet. And where a product's
    # devices are named in both ways its share is no estimate of one stratum: the interval has both.
    limits = (
        f"round(least(i.share, coalesce(e.low, 0)), {_DIGITS}) AS low, "
        f"round(greatest(i.share, coalesce(e.high, 1)), {_DIGITS}) AS high"
    )
    database.execute(
        f"CREATE OR REPLACE VIEW inventory AS SELECT i.*, {limits} FROM ({INVENTORY}) i LEFT JOIN estimates e "
        "ON i.account = e.account AND i.product_key IS NOT DISTINCT FROM e.product_key "
        "AND lower(i.module_name) = e.known_as AND i.module_version = e.module_version "
        "ORDER BY i.account, i.product_key, i.module_name, i.devices DESC, i.module_version"
    )
    return tallies


def sample_of(database: duckdb.DuckDBPyConnection, tallies: Tallies) -> Sample:
    """What a sample tells of the whole fleet, from the view ``devices`` and what ``define_estimates`` gave."""
    devices, drawn, answered = database.execute(
        "SELECT count(*), count(*) FILTER (source IS DISTINCT FROM 'unsampled'), "
        "count(*) FILTER (status IN ('ok', 'empty', 'not_found')) FROM devices"
    ).fetchone() or (0, 0, 0)
    most = max(FEWEST, min(ROWS, STRATA // max(1, len(tallies.devices))))
    of_module = {each.version: each.interval for each in tallies.shares("module", most, frequent=True)}
    shares, room = [], NAMES
    for each in tallies.shares("fleet", most, frequent=True):
        names = each.version[2:]
        if each.version in of_module and (room := room - sum(map(len, names))) >= 0:
            of_fleet, within = _rounded(each.interval), _rounded(of_module[each.version])
            shares.append(FleetShare(*names, each.running, of_fleet, within))
    unseen = tallies.unseen_in_fleet()
    return Sample(
        devices=devices,
        drawn=drawn - tallies.certain,
        answered=answered - tallies.certain,
        known=tallies.certain,
        unseen=None if unseen is None else round(unseen, _DIGITS),
        fleet=tuple(shares),
        left_out=tallies.versions - len(shares),
    )


def _rounded(interval: Interval) -> Interval:
    return Interval(*(round(number, _DIGITS) for number in (interval.share, interval.low, interval.high)))


def _limits(interval: Interval) -> dict[str, float]:
    return {"share": interval.share, "low": interval.low, "high": interval.high}


VERSIONS = (
    "list_sort(list_transform({0}, lambda module: lower(module.module_name) || chr(0) || module.module_version))"
)  # fmt: skip
"""Modules of an answer as a list that is the same if they are; names are the same regardless of case."""


def count_rechecked(database: duckdb.DuckDBPyConnection, carried: int) -> Recheck | None:
    """How often carrying was wrong, from the views ``planned`` and ``lines``; None where nothing was to be checked.

    Args:
        database: with the live views of a run.
        carried: devices whose answers were chosen to be carried, without those that were asked all the same.
    """
    asked = database.execute("SELECT count(*) FROM planned WHERE why = 'recheck'").fetchall()[0][0]
    if not asked:
        return None
    other = f"p.status <> l.status OR {VERSIONS.format('p.modules')} <> {VERSIONS.format('l.modules')}"
    # A device that the fleet names in both ways has a line of either name, and is one in the plan by each.
    met = _met(
        "JOIN",
        f"{device_key('p.account', 'p.product_key', 'p.device_name', 'p.iot_id')} AS key, {other} AS wrong",
        "why = 'recheck'",
        "asked",
    )
    parts = f"SELECT key, bool_or(wrong) AS wrong FROM ({met}) GROUP BY key"
    answered, wrong = database.execute(f"SELECT count(*), count(*) FILTER (wrong) FROM ({parts})").fetchone() or (0, 0)
    found = Recheck(carried + asked, asked, answered, wrong)
    if not answered:
        return found
    rate = error_rate(carried + asked, answered, wrong)
    return replace(found, rate=round(rate.share, 8), low=round(rate.low, 8), high=round(rate.high, 8))


def count_unreached(database: duckdb.DuckDBPyConnection) -> int:
    """Devices that were to be asked and were not, and whose known answers are carried all the same.

    From the views ``planned`` and ``lines``.
    """
    met = _met("SEMI JOIN", "p.account", "true", "carried")
    found: int = database.execute(f"SELECT count(*) FROM ({met})").fetchall()[0][0]
    return found


def _met(join: str, columns: str, condition: str, source: str) -> str:
    """The SQL of the devices of a plan (``p``) that have an answer (``l``) of a source."""
    return " UNION ALL ".join(
        f"SELECT {columns} FROM (FROM planned WHERE {condition} AND iot_id IS {word}NULL) p "
        f"{join} (FROM lines WHERE source = '{source}') l ON p.account = l.account AND {on}"
        for word, on in (
            ("NOT ", "p.iot_id = l.iot_id"),
            ("", "p.product_key = l.product_key AND p.device_name = l.device_name"),
        )
    )
