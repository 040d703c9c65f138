"""A sample that ends as soon as shares are known well enough.

A plan while it is followed: what a sample has shown so far, and how one ends that was not followed to its end.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import duckdb

from auditor.config.settings import Settings
from auditor.errors import RunNotWritableError
from auditor.fleet.table import devices_by_stratum
from auditor.models import Answered, Device, Level, Outcome
from auditor.planning.sample_size import LEAST, PRODUCT_STEP, STEP
from auditor.runs.folder import FLEET
from auditor.runs.manifest import Choice
from auditor.runs.views import define_lines
from auditor.stats.intervals import unseen
from auditor.stats.stratified import Place, Tallies
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database, reason_of

LOOKED_AT = 8
"""Versions that are looked at first: those of which most is uncertain. Only if these are known well all are."""


Fetch = Callable[[Device], Awaitable[Outcome]]


class Precision:
    """Counts what a sample shows, and says when that is enough.

    Args:
        settings: of the audit.
        folder: the run folder.
        resumed: whether earlier stretches have asked some devices.
        choice: whom the run chose to ask; None, or without a precision: nothing is counted.

    Attributes:
        enough: whether all shares are known well enough, so that no more devices are asked.
    """

    def __init__(self, settings: Settings, folder: Path, choice: Choice | None, *, resumed: bool) -> None:
        self._wanted = None if choice is None else choice.precision
        self._level: Level = "fleet" if choice is None or choice.precision_of is None else choice.precision_of
        self._skips = {account.name for account in settings.account if account.skips}
        self._folder, self._resumed, self._accounts = folder, resumed, len(settings.account)
        self._tallies = Tallies()
        self._begun: set[str] = set()
        self._known: set[Place] = set()
        self._next = LEAST
        self.enough = False

    @property
    def reached(self) -> float | None:
        """Half the widest interval of the shares in question; None where no precision is asked, or nothing was seen."""
        return None if self._wanted is None else self._tallies.widest(self._level)

    async def begin(self, account: str) -> None:
        """An account's devices are known.

        Raises:
            RunNotWritableError: the run folder cannot be read.
        """
        if self._wanted is None:
            return
        if self._resumed and not self._begun:
            self._tallies = await anyio.to_thread.run_sync(tally_sample, self._folder)
        self._begun.add(account)
        self._tallies.devices.clear()
        self._tallies.certain = 0
        for stratum, (devices, certain) in devices_by_stratum(self._folder / FLEET, self._skips).items():
            if devices:
                self._tallies.devices[stratum] = devices
            self._tallies.certain += certain

    def until_known(self, devices: Iterator[Device]) -> Iterator[Device]:
        """The devices, until shares are known well enough; of a product whose own are, none more."""
        for device in devices:
            if self.enough:
                return
            if (device.account, device.product_key) not in self._known:
                yield device

    def counting(self, fetch: Fetch) -> Fetch:
        """``fetch``, whose outcomes are counted."""
        if self._wanted is None:
            return fetch

        async def counted(device: Device) -> Outcome:
            outcome = await fetch(device)
            if isinstance(outcome, Answered):
                self._take(device, outcome)
            return outcome

        return counted

    def _take(self, asked: Device, answered: Answered) -> None:
        stratum, place = (asked.account, asked.product_key), (asked.account, answered.device.product_key)
        self._tallies.sampled[stratum] += 1
        for module in answered.modules:
            self._tallies.add(stratum, place, module.module_name, module.module_version)
        number = sum(self._tallies.sampled.values())
        if not self.enough and number >= self._next:
            self._next = int(number * (PRODUCT_STEP if self._level == "product" else STEP)) + 1
            if self._level == "product":
                self._look_at_products()
            elif self._each_has_begun():
                self._look()

    def _each_has_begun(self) -> bool:
        """Whether every account's devices are known, and some of them: or a part of the fleet is not."""
        seen, there = Counter[str](), Counter[str]()
        for (account, _), devices in self._tallies.devices.items():
            there[account] += devices
        for (account, _), devices in self._tallies.sampled.items():
            seen[account] += devices
        enough = (seen[account] >= min(LEAST, devices) for account, devices in there.items())
        return len(self._begun) == self._accounts and all(enough)

    def _look(self) -> None:
        # Most often the widest of a few is too wide already.
        widest = (self._tallies.widest(self._level, most) for most in (LOOKED_AT, None))
        self.enough = all(each is not None and each <= (self._wanted or 0.0) for each in widest)

    def _look_at_products(self) -> None:
        """Each product on its own: what is known well enough is not asked, so that the others are known sooner."""
        tallies, halves = self._tallies, dict[Place, float]()
        for stratum, devices in tallies.devices.items():
            seen = tallies.sampled[stratum]
            # Of a product that shows no module it is known how many devices can report one at most.
            halves[stratum] = unseen(devices, seen) / 2 if seen else 1.0
        shown = dict[Place, float]()
        for share in tallies.shares("product"):
            if tallies.is_rare(share):
                continue
            place = (str(share.version.account), share.version.product_key)
            stratum = place if place in halves else (place[0], None)
            shown[stratum] = max(shown.get(stratum, 0.0), share.interval.half)
        halves |= shown
        self._known = {
            stratum
            for stratum, half in halves.items()
            if half <= (self._wanted or 0.0) and tallies.sampled[stratum] >= min(LEAST, tallies.devices[stratum])
        }
        self.enough = len(self._known) == len(halves) and len(self._begun) == self._accounts


def tally_sample(folder: Path) -> Tallies:
    """What a sample has shown so far, from the plan and the lines of its run folder; how large strata are is not told.

    Raises:
        RunNotWritableError: they cannot be read, so the run cannot go on.
    """
    tallies = Tallies()
    database = open_database(None, READING_MEMORY, READING_THREADS)
    try:
        define_lines(database, folder)
        columns = "p.account, p.product_key AS stratum, l.product_key, l.modules"
        drawn = f"SELECT {columns} FROM (FROM planned WHERE why = 'sample')"
        met = " UNION ALL ".join(
            f"{drawn} p JOIN lines l ON p.account = l.account AND {on}"
            for on in (
                "p.iot_id = l.iot_id",
                "p.iot_id IS NULL AND p.product_key = l.product_key AND p.device_name = l.device_name",
            )
        )
        database.execute(f"CREATE TABLE met AS {met}")
        for account, key, devices in database.execute(
            "SELECT account, stratum, count(*) FROM met GROUP BY ALL"
        ).fetchall():
            tallies.sampled[account, key] = devices
        for account, stratum, key, name, version, devices in database.execute(
            "SELECT account, stratum, product_key, module.module_name, module.module_version, count(*) "
            "FROM (SELECT *, unnest(modules) AS module FROM met) GROUP BY ALL"
        ).fetchall():
            tallies.add((account, stratum), (account, key), name, version, devices)
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{folder}: cannot be read: {reason_of(error)}") from error
    finally:
        database.close()
    return tallies
