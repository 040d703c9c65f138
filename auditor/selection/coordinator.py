"""The part of a fleet that a run asks: chosen, asked as far as budget and precision go, and settled at the end.

Whom a run asks, where that is not the whole fleet: chosen account by account, once its devices are known.

What was chosen is in the run folder before anybody is asked: ``plan.parquet``, whom to ask, in order, and
``carried.parquet``, what is known of others. A process that is killed before that chooses anew, and asks for no state
twice; one that is killed later goes on with the plan.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog

from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.config.settings import Account, Settings, part_of
from auditor.engine.account_session import AskedAccount
from auditor.engine.allocation import CallBudget, allotted, parts_of
from auditor.engine.run_state import Standing
from auditor.engine.worker_pool import Stop
from auditor.errors import RunFolderError, RunNotWritableError, SettingsError
from auditor.fleet.table import devices_to_ask
from auditor.models import Device
from auditor.planning.capacity import calls_within, plan_of
from auditor.planning.measurements import Experience, newest_experience
from auditor.policy.loader import load_rules
from auditor.runs.folder import CARRIED, FLEET, PLAN
from auditor.runs.journal import Journal
from auditor.runs.locking import Begun
from auditor.runs.manifest import AccountChoice, Choice, RequestCounts
from auditor.selection.baseline import write_known
from auditor.selection.connectivity import AT_ONCE, ask_states
from auditor.selection.plan_files import count_chosen, settle, write_with_part
from auditor.selection.ranking import Budget, Sample
from auditor.selection.selector import CLOCKS_APART, Choosing, Since
from auditor.selection.stopping import Fetch, Precision
from auditor.stats.intervals import Z
from auditor.storage.files import put_in_place
from auditor.text.durations import seconds_of
from auditor.text.formatting import utc


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


log = structlog.get_logger()


T = TypeVar("T")


ASK = "ask.parquet"
"""Whom to ask, in order, beside the other files of an account."""


WORK = ".choosing"
"""A folder in the run folder for what is known and told, until the run has ended."""


SPARE, SPARE_DEVICES = 1.25, 200
"""What a sample may take beyond what the precision takes of one that is not stratified: some fail, for one thing."""


Tell = Callable[[Choice, Mapping[str, int], int], Awaitable[None]]


class Choices:
    """Chooses whom a run asks.

    Args:
        settings: of the audit.
        begun: the run folder.
        chosen: told the choice when an account has chosen, how many devices by status have an answer by that, and how
            many were not drawn; it writes that down before it returns.
        until: when to be done, in seconds since 1970; None: whenever.
        before: what an earlier run tells of calls and latency.
    """

    def __init__(
        self, settings: Settings, begun: Begun, chosen: Tell, *, until: float | None, before: Experience | None
    ) -> None:
        self._settings, self._begun, self._chosen, self._until, self._before = settings, begun, chosen, until, before
        self._accounts = {account.name: account for account in settings.account}
        self._parts = dict(zip(self._accounts, parts_of(settings), strict=True))
        self._allotted = dict(zip(self._accounts, allotted(settings), strict=True)) if settings.calls else {}
        self._choice = begun.manifest.choice
        self._work = begun.folder / WORK
        self._knowing, self._putting = anyio.Lock(), anyio.Lock()

    async def of(self, asked: AskedAccount, devices: Path, *, every: bool, stop: Stop) -> Path | None:
        """A file of the devices that are asked, in order; None if the end was wished before that was known.

        Args:
            asked: the account.
            devices: its devices.
            every: whether those are asked, too, that were never activated.
            stop: a wish to end early.

        Raises:
            AccountStoppedError: the account is refused, or was never reached.
            RunNotWritableError: the run folder cannot be written, or the earlier run cannot be read.
        """
        if self._choice is None or any(each.account == asked.name for each in self._choice.accounts):
            return devices
        place = self._work / hashlib.sha256(asked.name.encode()).hexdigest()[:16]
        account = self._accounts[asked.name]
        choosing = await _aside(partial(Choosing, place, asked.name, devices, ask_all=every, seed=self._choice.seed))
        with choosing:
            facts = await self._choose(asked, account, choosing, place, stop)
        if facts is None:
            return None
        await self._put(*facts, place)
        return place / ASK

    async def _choose(
        self, asked: AskedAccount, account: Account, choosing: Choosing, place: Path, stop: Stop
    ) -> tuple[AccountChoice, int] | None:
        """What an account chose, and how many of its devices were not drawn."""
        choice, facts = self._choice, AccountChoice(asked.name)
        if choice is None:
            return None
        if choice.strategy == "sample":
            undrawn = await _aside(partial(choosing.write_sample, place / ASK, place / PLAN, self._sample(asked)))
            return replace(facts, chosen_at=utc(time.time())), undrawn
        known = await self._known()
        await _aside(partial(choosing.match, known))
        if choice.strategy == "since":
            since = self._since()
            questions = place / "questions.parquet"
            states: Path | None = place / "states.parquet"
            number, before = await _aside(partial(choosing.write_questions, questions, since)), 0
            if not self._bears(account, asked.all_sent + number // AT_ONCE):
                log.warning("the budget is too small to ask who was connected", account=asked.name, devices=number)
                await _aside(choosing.take_rest)
                number = untold = 0
            else:
                before = await ask_states(
                    asked, questions, place / "states.jsonl", place / "states.parquet", devices=number, stop=stop
                )
                if stop.interrupted:
                    return None
                if abs(asked.client.clock_offset) > CLOCKS_APART:
                    log.warning("clocks are too far apart to tell who was connected since", account=asked.name)
                    states = None
                untold = await _aside(partial(choosing.take_states, states, since))
            tally = asked.requests_of(BATCH_GET_DEVICE_STATE)
            requests = RequestCounts(before + tally.sent, tally.retried, tally.throttled)
            facts = replace(facts, states=number, untold=untold, requests=requests)
        else:
            before = 0
            await _aside(choosing.take_all)
        budget = self._budget(account, before + asked.all_sent)
        beyond = await _aside(partial(choosing.write, place / ASK, place / PLAN, place / CARRIED, budget))
        return replace(facts, beyond=beyond, chosen_at=utc(time.time())), 0

    async def _known(self) -> Path | None:
        """What the earlier run knows, read once for all accounts; None: there is none."""
        path = self._work / "known.parquet"
        if self._choice is None or self._choice.since is None:
            return None
        async with self._knowing:
            if not path.exists():
                rules = None if self._settings.policy is None else load_rules(self._settings.policy.file)
                new = path.with_suffix(".new")
                if not (self._begun.folder.parent / self._choice.since).is_dir():
                    log.warning(
                        "the run whose answers are carried has gone, so everybody is asked", run=self._choice.since
                    )
                    return None
                await _aside(partial(write_known, self._begun.folder.parent / self._choice.since, new, rules))
                new.replace(path)
        return path

    def _bears(self, account: Account, calls: int) -> bool:
        """Whether an account's budget bears so many calls, and some more."""
        allotted = self._allotted.get(account.name)
        return allotted is None or calls < allotted

    def _since(self) -> Since:
        settings = self._settings
        age = None if settings.max_age is None else seconds_of(settings.max_age)
        expired = None if age is None else datetime.fromtimestamp(max(0.0, time.time() - age), UTC)
        return Since(settings.since_rule, expired, part_of(settings.recheck))

    def _sample(self, asked: AskedAccount) -> Sample:
        settings = self._settings
        if settings.precision is None:
            wanted = 0 if settings.sample is None else settings.sample
            return Sample(max(1, round(wanted * self._part_of_sample(asked.name))))
        if settings.precision_of == "fleet":  # which every device tells of: it is known how many it takes at most
            return Sample(math.ceil(SPARE * (Z / 2 / part_of(settings.precision)) ** 2) + SPARE_DEVICES)
        return Sample(None, alike=settings.precision_of == "product")

    def _part_of_sample(self, account: str) -> float:
        """The part of a sample that an account has: by its devices, or by its quota while not all fleets are known."""
        if self._begun.manifest.listings:
            return self._parts[account]
        devices = devices_to_ask(self._begun.folder / FLEET, [each.name for each in self._settings.account])
        return devices.get(account, 0) / max(1, sum(devices.values()))

    def _budget(self, account: Account, spent: int) -> Budget | None:
        """What the budget bears of an account, once ``spent`` calls of it are."""
        calls = timed = most = None
        if self._settings.calls is not None:
            calls = most = max(0, self._allotted[account.name] - spent)
        if self._until is not None:
            seconds = max(0.0, self._until - time.time())
            timed = calls_within(self._settings, account, self._before, seconds)
            if account.rate is not None:  # not one call more can be sent, so nobody else can be asked
                most = math.ceil(min(seconds * account.rate, math.inf if most is None else most))
        if calls is None and self._until is None:
            return None
        if calls == 0:
            log.warning("the budget bears no question beside what was sent by now", account=account.name, calls=spent)
        known = [each for each in (calls, timed) if each is not None]
        asked = None if self._before is None else self._before.asked.get(account.name)
        each = 1.0 if asked is None else asked.requests / asked.devices
        return Budget(math.floor(min(known) / each) if known else None, part_of(self._settings.guaranteed), most)

    def finish(self) -> None:
        """Removes what is not needed once everybody was asked."""
        shutil.rmtree(self._work, ignore_errors=True)

    async def _put(self, facts: AccountChoice, undrawn: int, place: Path) -> None:
        """Puts what was chosen into the run folder, then tells it."""
        async with self._putting:
            choice = self._choice
            if choice is None:
                return
            for name in (CARRIED, PLAN) if (place / CARRIED).exists() else (PLAN,):
                await _aside(partial(_put_part, place / name, self._begun.folder / name, facts.account))
            asked, carried = await _aside(partial(count_chosen, place / PLAN, place / CARRIED))
            facts = replace(facts, asked=asked, carried=sum(carried.values()))
            self._choice = replace(choice, accounts=(*choice.accounts, facts))
            await self._chosen(self._choice, carried, undrawn)


def _put_part(part: Path, target: Path, account: str) -> None:
    """Puts an account's part into a file of the run folder, where no power cut can take it once the manifest tells it.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    new = target.with_name(f"{target.name}.new")
    write_with_part(part, target, account, new)
    try:
        put_in_place(new, target)
    except OSError as error:
        raise RunNotWritableError(f"{target} cannot be written: {error.strerror}") from error


async def _aside(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread.

    Raises:
        RunNotWritableError: what was known cannot be read, or rules.
    """
    try:
        return await anyio.to_thread.run_sync(work)
    except (RunFolderError, SettingsError) as error:
        raise RunNotWritableError(str(error)) from error
