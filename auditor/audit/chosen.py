"""The part of a fleet that a run asks: chosen, asked as far as budget and precision go, and settled at the end."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from auditor.audit.account import AskedAccount
from auditor.audit.beginning import Begun
from auditor.audit.budget import CallBudget
from auditor.audit.choosing import Choices
from auditor.audit.journal import Journal
from auditor.audit.plan import plan_of
from auditor.audit.precision import Fetch, Precision
from auditor.audit.scheduler import Stop
from auditor.audit.standing import Standing
from auditor.config import Settings
from auditor.errors import RunNotWritableError
from auditor.inventory.choices import Choice
from auditor.inventory.experience import newest_experience
from auditor.inventory.folder import CARRIED, PLAN, put_in_place
from auditor.inventory.planned import settle
from auditor.model import Device


class Chosen:
    """Of a run that asks its whole fleet it does nothing.

    Args:
        settings: of the audit.
        begun: the run folder.
        standing: told what was chosen.
        journal: told which devices have an answer without being asked.
        write: writes the manifest.
        until: when to be done, in seconds since 1970; None: whenever.
    """

    def __init__(
        self,
        settings: Settings,
        begun: Begun,
        standing: Standing,
        journal: Journal,
        write: Callable[[], Awaitable[None]],
        *,
        until: float | None,
    ) -> None:
        choice = begun.manifest.choice
        self._settings, self._folder = settings, begun.folder
        self._standing, self._journal, self._write = standing, journal, write
        self._before = None if choice is None else newest_experience(begun.folder.parent, settings.name)
        self._choices = Choices(settings, begun, self._chosen, until=until, before=self._before)
        self._budget = CallBudget(settings, standing.accounts, standing.requests_before)
        self._precision = Precision(settings, begun.folder, choice, resumed=begun.resumed)

    @property
    def why(self) -> str | None:
        """Why devices were left unasked that are to be asked, if they were."""
        return self._budget.why

    async def of(self, asked: AskedAccount, devices: Path, *, every: bool, stop: Stop) -> Path | None:
        """A file of the devices that are asked, in order; see ``Choices.of``."""
        return await self._choices.of(asked, devices, every=every, stop=stop)

    async def asking(self, asked: AskedAccount, devices: Iterator[Device]) -> tuple[Iterator[Device], Fetch]:
        """An account's chosen devices as long as there is a reason to ask, and how each is asked.

        Raises:
            RunNotWritableError: the run folder cannot be read.
        """
        await self._precision.begin(asked.name)
        return self._precision.until_known(self._budget.within(devices)), self._precision.counting(asked.fetch)

    async def _chosen(self, choice: Choice, carried: Mapping[str, int], undrawn: int) -> None:
        """Some devices were chosen to be asked, and others have an answer without: from now on the manifest says so."""
        for status, devices in carried.items():
            self._journal.counts[status] += devices
        asked = {each.account: sum(each.asked.values()) for each in choice.accounts}
        manifest, planned = self._standing.manifest, plan_of(self._settings, asked, self._before).planned
        unsampled = manifest.unsampled + undrawn
        self._standing.manifest = replace(manifest, choice=choice, planned=planned, unsampled=unsampled)
        await self._write()

    async def settle(self, stop: Stop) -> None:
        """Ends the choice where budget, time or precision did: what was to be asked and was not is not any more.

        One that was interrupted is left for a resume, and so are accounts that were stopped.

        Raises:
            RunNotWritableError: the run folder cannot be written.
        """
        choice = self._standing.manifest.choice
        timed_out = stop.reason is not None and not stop.interrupted
        if choice is None or stop.interrupted:
            return
        sample = choice.strategy == "sample"
        spent, name = timed_out or self._budget.spent, PLAN if sample else CARRIED
        if (spent or choice.precision is not None) and (self._folder / name).exists():
            new = self._folder / f"{name}.new"
            ended = [asked.name for asked in self._standing.accounts if asked.stopped is None]
            carried = await anyio.to_thread.run_sync(partial(settle, self._folder, new, ended, sample=sample))
            try:
                await anyio.to_thread.run_sync(put_in_place, new, self._folder / name)
            except OSError as error:
                raise RunNotWritableError(f"{self._folder} cannot be written: {error.strerror}") from error
            for status, devices in carried.items():
                self._journal.counts[status] += devices
        spent = spent or any(each.beyond for each in choice.accounts)
        choice = replace(choice, spent=spent, reached=self._precision.reached)
        self._standing.manifest = replace(self._standing.manifest, choice=choice)

    def finish(self) -> None:
        """Removes what only a resume needs, where nothing is left to ask."""
        self._choices.finish()
