"""What a random sample tells of a fleet: for every version its share, and how far that may be from the fleet's.

Strata are the products, as the fleet names them; devices that are named by their iot_id alone are one stratum of their
account. Devices that were never activated, as the platform lists them, are known without a question, and so certain.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import duckdb

from auditor.models import Level
from auditor.stats.intervals import Interval, Stratum
from auditor.stats.ratio_estimator import share_over, unseen_over

THIN = 2
"""A stratum of which less devices were drawn tells of those that are like it, even if none reports a module."""


RARE = 0.01
"""The part of the devices that must report a module for its versions to have a say in how precise a sample is."""


Place = tuple[str, str | None]
"""An account and a product key of it: of a stratum, or of the devices of one product."""


Module = tuple[str | None, str | None, str]
"""A module, as a ``Version`` without its version."""


class Version(NamedTuple):
    """A version of a module, and of whom it is one: None is every account, or product."""

    account: str | None
    product_key: str | None
    module_name: str
    module_version: str

    @property
    def module(self) -> Module:
        """The module that it is a version of; names that differ in letter case alone are one."""
        return self.account, self.product_key, self.module_name.lower()


@dataclass(frozen=True, slots=True)
class Share:
    """A version's share by a sample: of ``reporting`` devices that were seen ``running`` run it.

    ``known_as`` is the module's name in lower case, as the database has it.
    """

    version: Version
    running: int
    reporting: int
    interval: Interval
    known_as: str


class Tallies:
    """Counts of what a sample showed.

    Attributes:
        devices: how many devices each stratum has.
        sampled: how many of them were drawn and answered.
        certain: devices of which it is certain that they report nothing.
    """

    def __init__(self) -> None:
        self.devices: Counter[Place] = Counter()
        self.sampled: Counter[Place] = Counter()
        self.certain = 0
        self._reporting: Counter[tuple[Place, Place, str]] = Counter()
        self._running: Counter[tuple[Place, Place, str, str]] = Counter()
        self._spelled: dict[str, str] = {}

    @property
    def versions(self) -> int:
        """How many versions of modules were seen, over all products."""
        return len({(module, version) for _, _, module, version in self._running})

    def add(
        self,
        stratum: Place,
        place: Place,
        module_name: str,
        module_version: str,
        devices: int = 1,
        *,
        known_as: str | None = None,
    ) -> None:
        """Devices of a stratum and a product were seen to run a version; ``known_as``: the module in lower case."""
        module = module_name.lower() if known_as is None else known_as
        # As in the inventory: names that differ in letter case alone are one, under the one that sorts last.
        self._spelled[module] = max(self._spelled.get(module, ""), module_name)
        self._reporting[stratum, place, module] += devices
        self._running[stratum, place, module, module_version] += devices

    def shares(self, level: Level, most: int | None = None, *, frequent: bool = False) -> Iterator[Share]:
        """Every version's share.

        Args:
            level: of whom.
            most: only so many of them, those of which most is uncertain, so that the widest interval is among them.
            frequent: the most frequent ones instead, in this order, which is the same of the fleet and of a module.
        """
        running: dict[tuple[Module, str], Counter[Place]] = {}
        for (stratum, place, name, version), devices in self._running.items():
            running.setdefault((_module(level, place, name), version), Counter())[stratum] += devices
        reporting: dict[Module, Counter[Place]] = {}
        for (stratum, place, name), devices in self._reporting.items():
            reporting.setdefault(_module(level, place, name), Counter())[stratum] += devices
        every = self.sampled.total() + self.certain
        totals = {module: every if level == "fleet" else sum(each.values()) for module, each in reporting.items()}
        found = list(running.items())
        if frequent:
            found.sort(key=lambda each: (-each[1].total(), each[0][0][2], each[0][1]))
        elif most is not None:
            found.sort(key=lambda each: abs(0.5 - sum(each[1].values()) / totals[each[0][0]]))
        for (module, version), counts in found[:most]:
            strata = list(self._strata(level, reporting[module], counts))
            if not any(each.reporting for each in strata):
                continue  # of devices that are no part of the fleet, as somebody else's file may tell
            account, product_key, name = module
            shown = Version(account, product_key, self._spelled[name], version)
            yield Share(shown, sum(counts.values()), totals[module], share_over(strata), name)

    def unseen_in_fleet(self) -> float | None:
        """The most that is likely to be the part of the fleet that runs what no sampled device shows.

        None where no device was sampled.
        """
        strata = list(self._strata("fleet", Counter(), Counter()))
        return unseen_over(strata) if any(each.sampled for each in strata) else None

    def widest(self, level: Level, most: int | None = None) -> float | None:
        """Half the widest interval of a level; None where nothing was seen. ``RARE`` modules do not count."""
        return max((each.interval.half for each in self.shares(level, most) if not self.is_rare(each)), default=None)

    def is_rare(self, share: Share) -> bool:
        """Whether its module is reported by so few that a sample can hardly tell who of them runs what."""
        version = share.version
        if version.account is None:
            return share.reporting < RARE * sum(self.sampled.values())
        place = (version.account, version.product_key)
        stratum = place if place in self.devices else (version.account, None)
        return share.reporting < RARE * self.sampled[stratum]

    def unseen(self, level: Level, modules: Iterable[Module]) -> dict[Module, Interval]:
        """Of each module the share of a version that no sampled device runs; not of one that none of them reports.

        In the fleet that is a part of all devices, whatever they report, and so the same for every module.
        """
        if level == "fleet":
            strata = list(self._strata(level, Counter(), Counter()))
            return dict.fromkeys(modules, share_over(strata)) if any(each.sampled for each in strata) else {}
        reporting: dict[Module, Counter[Place]] = {}
        for (stratum, place, name), devices in self._reporting.items():
            reporting.setdefault(_module(level, place, name), Counter())[stratum] += devices
        return {
            module: share_over(list(self._strata(level, reporting[module], Counter())))
            for module in modules
            if module in reporting
        }

    def _strata(self, level: Level, reporting: Counter[Place], running: Counter[Place]) -> Iterator[Stratum]:
        for stratum in reporting if level == "product" else self.devices:
            sampled = self.sampled[stratum]
            # A device may report a module in two spellings, and counts as one of those that were sampled all the same.
            seen = sampled if level == "fleet" else min(sampled, reporting[stratum])
            if level == "fleet" or seen or (level == "module" and sampled < THIN):
                yield Stratum(self.devices[stratum], sampled, seen, min(seen, running[stratum]))
        if level == "fleet" and self.certain:
            yield Stratum(self.certain, self.certain, self.certain, 0)


def _module(level: Level, place: Place, name: str) -> Module:
    account, product_key = place if level == "product" else (None, None)
    return account, product_key, name


def read_tallies(database: duckdb.DuckDBPyConnection, fleet: str | None = None) -> Tallies:
    """The tallies of a run, from its views ``devices`` and ``modules``.

    Args:
        database: with these views.
        fleet: the SQL that reads ``fleet.parquet``; needed where devices are named by their iot_id alone.
    """
    tallies = Tallies()
    stratum = "product_key"
    if fleet is not None and database.execute(f"SELECT 1 FROM {fleet} WHERE product_key IS NULL LIMIT 1").fetchall():
        stratum = "stratum"
        database.execute(
            f"CREATE OR REPLACE TEMP VIEW strata AS SELECT d.*, f.product_key AS stratum FROM devices d "
            f"JOIN (SELECT ordinal, product_key FROM {fleet}) f USING (ordinal)"
        )
    else:
        database.execute("CREATE OR REPLACE TEMP VIEW strata AS FROM devices")
    certain = "reason IS NOT DISTINCT FROM 'never_activated' AND attempts = 0"
    answered = "status IN ('ok', 'empty', 'not_found')"
    rows = database.execute(
        f"SELECT account, {stratum}, count(*) FILTER (NOT ({certain})), "
        f"count(*) FILTER ({answered} AND NOT ({certain})), count(*) FILTER ({certain}) FROM strata GROUP BY ALL "
        "ORDER BY ALL"  # sums of fractions depend on it in the last digit
    ).fetchall()
    for account, key, devices, sampled, known in rows:
        tallies.certain += known
        if devices:
            tallies.devices[account, key] = devices
            tallies.sampled[account, key] = sampled
    same = " AND ".join(f"d.{name} IS NOT DISTINCT FROM m.{name}" for name in ("product_key", "device_name", "iot_id"))
    counted = (
        f"SELECT m.account, {'m.product_key' if stratum == 'product_key' else 'd.stratum'}, m.product_key, "
        "max(m.module_name), lower(m.module_name) AS known_as, m.module_version, count(*) FROM modules m "
        + (
            ""
            if stratum == "product_key"
            else f"JOIN (FROM strata WHERE status = 'ok') d ON d.account = m.account AND {same} "
        )
        + "GROUP BY ALL ORDER BY ALL"
    )
    for account, key, product_key, name, known_as, version, devices in database.execute(counted).fetchall():
        if tallies.sampled[account, key]:  # else these are answers about a product that the fleet has not
            tallies.add((account, key), (account, product_key), name, version, devices, known_as=known_as)
    database.execute("DROP VIEW strata")
    return tallies
