"""A sample that ends as soon as shares are known well enough."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from auditor.config import Settings
from auditor.fleet.rows import devices_by_stratum
from auditor.inventory.choices import Choice
from auditor.inventory.estimates import Tallies
from auditor.inventory.folder import FLEET
from auditor.inventory.known import tally_sample
from auditor.model import Answered, Device, Outcome

LEAST, STEP = 100, 1.02
"""Devices that are answered before it is looked how well shares are known, and by what factor more between two looks.

A look now and then, for each look is a chance to end by luck.
"""

LOOKED_AT = 8
"""Versions that are looked at first: those of which most is uncertain. Only if these are known well all are."""

Fetch = Callable[[Device], Awaitable[Outcome]]


class Precision:
    """Counts what a sample shows, and says when that is enough.

    Args:
        settings: of the audit.
        folder: the run folder.
        choice: whom the run chose to ask; None, or without a precision: nothing is counted.

    Attributes:
        reached: half the widest interval once it was narrow enough; None: not yet.
    """

    def __init__(self, settings: Settings, folder: Path, choice: Choice | None) -> None:
        self._wanted = None if choice is None else choice.precision
        self._level = "fleet" if choice is None or choice.precision_of is None else choice.precision_of
        self._skips = {account.name for account in settings.account if account.skips}
        self._folder, self._accounts = folder, len(settings.account)
        self._tallies = Tallies()
        self._begun: set[str] = set()
        self._next = LEAST
        self.reached: float | None = None

    def begin(self, account: str) -> None:
        """An account's devices are known, and those that earlier stretches asked are in the run folder.

        Raises:
            RunNotWritableError: the run folder cannot be read.
        """
        if self._wanted is None:
            return
        tallies = tally_sample(self._folder)
        tallies.devices.clear()
        for (name, key), (asked, certain) in devices_by_stratum(self._folder / FLEET, self._skips).items():
            tallies.devices[name, key] = asked
            tallies.certain += certain
        self._tallies = tallies
        self._begun.add(account)

    def until_known(self, devices: Iterator[Device]) -> Iterator[Device]:
        """The devices, until shares are known well enough."""
        for device in devices:
            if self.reached is not None:
                return
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
        if self.reached is None and number >= self._next and len(self._begun) == self._accounts:
            self._next = int(number * STEP) + 1
            self._look()

    def _look(self) -> None:
        if self._wanted is None:
            return
        for most in (LOOKED_AT, None):
            widest = self._tallies.widest(self._level, most)
            if widest is None or widest > self._wanted:
                return
        self.reached = widest
