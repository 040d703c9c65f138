"""One account made ready to be asked: its client, its quota, what its answers teach, and its repeats.

Accounts made ready: their keys read, their connections and quotas opened, side by side.
"""

import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import anyio
import structlog

from auditor import __about__
from auditor.client.client import Client, Endpoint
from auditor.client.connector import trust
from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, Operation, module_versions_of
from auditor.client.responses import Answer
from auditor.config.proxy import Proxy, proxy_of
from auditor.config.secrets import read_secret
from auditor.config.settings import Account, Settings, SharedBudget
from auditor.config.validation import refuse_one_quota
from auditor.engine.device_reader import read_device
from auditor.engine.limiters import Gates
from auditor.engine.progress import AccountProgress
from auditor.errors import AccountStoppedError, RefusedAccountError, RefusedRequestError, SettingsError
from auditor.models import Device, Failed, Outcome, Secret, Sent
from auditor.resilience.circuit_breaker import Feedback
from auditor.resilience.retry import Backoff, Pacer, Tally

log = structlog.get_logger()


WARM_EVERY, WARM_SELDOM = 0.05, 30.0
"""Seconds between two looks whether connections are missing; doubled up to the second while none can be opened."""


SPARE = 1.5
"""How many connections are kept open, as a multiple of those that are needed on average."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an account is asked.

    ``told`` is its quota in requests a second, by the least that any of those who share it was told (None without one,
    or with one that is looked for), ``rate`` what it bears as far as was learned (None without one), ``others`` the
    processes that share it now; ``repeats_wait``: repeats take more than their part of it.
    """

    told: float | None
    rate: float | None
    others: int
    repeats_wait: bool


class AskedAccount:
    """An account with an open connection pool, and a gate and repeats for each operation, which has its own quota.

    Attributes:
        name: the account's.
        client: asks its platform.
        workers: requests that may be in flight.
        ended: whether nothing more is asked of it; whoever asks sets it.
        stopped: why, if it was stopped; likewise.
        unasked: devices of which all is known without a question; likewise.
        states: of how many devices it is known what they are doing, and of how many that is asked; None: of none now.
    """

    def __init__(
        self,
        settings: Settings,
        account: Account,
        client: Client,
        gates: Gates,
        *,
        workers: int,
        known: Device | None = None,
    ) -> None:
        self.name, self.client, self.workers = account.name, client, workers
        self.ended = False
        self.stopped: str | None = None
        self.unasked = 0
        self.states: tuple[int, int] | None = None
        self._done = self._failed = 0
        self._settings, self._gates = settings, gates
        self._feedback = Feedback(account.name, give_up_after=settings.give_up_after, worked_before=known is not None)
        self._pacers: dict[str, Pacer] = {}
        ask_known = None if known is None else partial(self._ask_once, known)
        self._pacer = self._pacer_of(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, ask_known)
        self._offset = 0

    def _pacer_of(self, operation: Operation, known: Callable[[], Awaitable[object]] | None = None) -> Pacer:
        if operation.quota_name not in self._pacers:
            self._pacers[operation.quota_name] = Pacer(
                self._gates.of(operation),
                self._feedback,
                Backoff(attempts=self._settings.attempts),
                retry_budget=self._settings.retry_budget,
                known=known,
            )
        return self._pacers[operation.quota_name]

    @property
    def tally(self) -> Tally:
        """Requests for module versions so far."""
        return self._pacer.tally

    @property
    def fetched(self) -> int:
        """Devices whose outcome is known by asking, since this stretch began."""
        return self._done

    @property
    def all_sent(self) -> int:
        """Requests so far, of all operations."""
        return sum(pacer.tally.sent for pacer in self._pacers.values())

    @property
    def pace(self) -> Pace:
        """How fast devices may be asked about now."""
        gate = self._gates.of(LIST_OTA_MODULE_VERSIONS_BY_DEVICE)
        told = None if gate.told == math.inf else gate.told
        return Pace(told, gate.rate, gate.others, self._pacer.repeats.short)

    @property
    def never_reached(self) -> AccountStoppedError | None:
        """Why the account counts as never reached, when requests were sent and none was ever answered usably."""
        if self._feedback.proven or self._feedback.last is None:
            return None
        return AccountStoppedError(self.name, f"no usable answer, the last: {self._feedback.last}")

    @property
    def sick(self) -> bool:
        """Whether an account that did work has had nothing but failures for a stretch."""
        return self._feedback.sick

    @property
    def trouble(self) -> str | None:
        """Why nothing comes from the account now, if so."""
        if self.sick:
            return f'account "{self.name}": nothing succeeds, it is probed; the last: {self._feedback.last}'
        if self._pacer.repeats.short:
            part = f"{self._settings.retry_budget:.0%} of the quota"
            return f'account "{self.name}": repeats take more than {part} and wait; the last: {self._feedback.last}'
        return None if self.never_reached is None else str(self.never_reached)

    @property
    def progress(self) -> AccountProgress:
        """Where it stands."""
        return AccountProgress(
            name=self.name,
            sent=self.tally.sent,
            done=self._done + self.unasked,
            failed=self._failed,
            in_flight=self.tally.in_flight,
            per_second=self.pace.rate,
            ended=self.ended,
            stopped=self.stopped,
            trouble=None if self.ended else self.trouble,
        )

    async def never_reached_at_all(self) -> AccountStoppedError | None:
        """As ``never_reached``, after a last question about a device that has answered before.

        Raises:
            AccountStoppedError: the account is refused.
        """
        if self.never_reached is not None:
            await self._pacer.ask_known()
        return self.never_reached

    async def _ask_once(self, device: Device) -> Answer:
        operation = LIST_OTA_MODULE_VERSIONS_BY_DEVICE
        return await self.client.call(operation, module_versions_of(device, 1, self._settings.page_size))

    async def keep_warm(self) -> None:
        """Keeps as many connections open as the pace needs, so that no slot is spent on a handshake; never returns."""
        pause = WARM_EVERY
        while True:
            await anyio.sleep(pause)
            rate, tally = self.pace.rate, self.tally
            if rate is not None and tally.answered and not self.sick:
                needed = rate * tally.seconds / tally.answered
                opened = await self.client.warm(math.ceil(SPARE * needed) + 1)
                pause = WARM_EVERY if opened else min(2 * pause, WARM_SELDOM)

    def _now(self) -> float:
        """Seconds since 1970 by the platform's clock, as far as it is known to differ: its states are told by that."""
        return time.time() + self.client.clock_offset

    async def fetch(self, device: Device) -> Outcome:
        """What became of one device.

        Raises:
            AccountStoppedError: the account is refused, or was never reached.
        """
        outcome = await read_device(self.call, device, page_size=self._settings.page_size, now=self._now)
        self._done += 1
        self._failed += isinstance(outcome, Failed)
        return outcome

    async def call(self, operation: Operation, parameters: Mapping[str, str]) -> Sent[Answer]:
        """One question within the operation's quota, with repeats.

        Raises:
            AccountStoppedError: the account is refused, or was never reached.
        """
        sent = await self._pacer_of(operation).send(lambda: self.client.call(operation, parameters))
        if (offset := round(self.client.clock_offset)) != self._offset:
            self._offset = offset
            log.warning("the platform's clock differs and is followed", account=self.name, seconds=offset)
        return sent

    async def call_aside(self, operation: Operation, parameters: Mapping[str, str]) -> Sent[Answer]:
        """As ``call``, for what an audit can do without: a key that may not ask it is refused that, and no more."""

        async def once() -> Answer:
            try:
                return await self.client.call(operation, parameters)
            except RefusedAccountError as error:
                if not _about_permission(error):
                    raise
                refused = RefusedRequestError(error.code, error.message, http_status=error.http_status)
            raise refused

        return await self._pacer_of(operation).send(once)

    def requests_of(self, *operations: Operation) -> Tally:
        """Requests for some operations so far."""
        tallies = [self._pacers[each.quota_name].tally for each in operations if each.quota_name in self._pacers]
        return Tally(
            sent=sum(each.sent for each in tallies),
            retried=sum(each.retried for each in tallies),
            throttled=sum(each.throttled for each in tallies),
            answered=sum(each.answered for each in tallies),
            seconds=sum(each.seconds for each in tallies),
        )

    def needed_for(self, operation: Operation, *alike: Operation) -> int:
        """Requests in flight that an operation's quota needs at the latency by now; all that may be, without a quota.

        Args:
            operation: whose quota.
            alike: others that tell of the latency.
        """
        rate, tally = self._gates.of(operation).rate, self.requests_of(operation, *alike)
        if rate is None or not tally.answered:
            return self.workers
        return min(self.workers, math.ceil(SPARE * rate * tally.seconds / tally.answered) + 1)


def _about_permission(error: RefusedAccountError) -> bool:
    """Whether a refusal is about what a key may ask, and not about the key."""
    return re.search("forbidden|permissiondeny", error.code, re.IGNORECASE) is not None


class Keys(NamedTuple):
    """What an account is asked with, read from where the settings say that it lies.

    ``budget`` is the password of the Redis server where quotas are shared, if one is named.
    """

    key_id: str
    secret: Secret
    proxy: Proxy | None = None
    budget: Secret | None = None


def read_keys(settings: Settings) -> list[Keys]:
    """The keys of every account, in their order, and a look at their ``ca_file``; call it in a thread, for it may wait.

    One account after the other: two commands that ask somebody for a password would ask at once.

    Raises:
        SettingsError: one of them is not there or cannot be used, or two accounts have one quota.
    """
    budget = settings.budget
    password = budget.password if isinstance(budget, SharedBudget) else None
    shared = None if password is None else read_secret(password, account=None, key="budget: password")
    keys = [_keys_of(account, shared) for account in settings.account]
    pairs = zip(settings.account, keys, strict=True)
    refuse_one_quota((f'account "{account.name}"', account, own.key_id) for account, own in pairs)
    return keys


def _keys_of(account: Account, budget: Secret | None) -> Keys:
    if account.ca_file is not None:
        trust(account.ca_file)
    key_id = read_secret(account.access_key_id, account=account.name, key="access_key_id").reveal()
    secret = read_secret(account.access_key_secret, account=account.name, key="access_key_secret")
    return Keys(key_id, secret, proxy_of(account), budget)


@asynccontextmanager
async def open_account(
    settings: Settings,
    account: Account,
    keys: Keys,
    workers: int,
    known: Device | None = None,
    *,
    priority: bool = False,
) -> AsyncIterator[AskedAccount]:
    """Opens an account.

    Args:
        settings: how to ask.
        account: one of theirs.
        keys: its keys.
        workers: requests in flight at most.
        known: a device that it has answered about before.
        priority: whether to go before others that share the account's quota.

    Raises:
        SettingsError: the place where quotas are shared cannot be used.
    """
    endpoint = Endpoint(
        url=account.endpoint,
        region_id=account.region_id,
        instance_id=account.instance_id,
        ca_file=account.ca_file,
        connect_timeout=settings.connect_timeout,
        timeout=settings.timeout,
        connections=workers,
        user_agent=f"auditor/{__about__.VERSION}",
        proxy=keys.proxy,
    )
    gates = Gates(settings, account, keys.key_id, priority=priority, password=keys.budget)
    async with Client(endpoint, keys.key_id, keys.secret) as client, gates:
        yield AskedAccount(settings, account, client, gates, workers=workers, known=known)


async def open_side_by_side(
    stack: AsyncExitStack, opening: Iterable[AbstractAsyncContextManager[AskedAccount]]
) -> list[AskedAccount]:
    """Opens accounts at the same time, for what one waits for is no matter of the others; ``stack`` closes them.

    Raises:
        SettingsError: one cannot be opened; what was opened is closed by ``stack`` all the same.
    """
    opened: dict[int, AskedAccount] = {}
    failures: list[SettingsError] = []

    async def enter(number: int, account: AbstractAsyncContextManager[AskedAccount]) -> None:
        try:
            opened[number] = await stack.enter_async_context(account)
        except SettingsError as error:  # raised below, outside the group that would wrap it
            failures.append(error)

    async with anyio.create_task_group() as group:
        for number, account in enumerate(opening):
            group.start_soon(enter, number, account)
    if failures:
        raise failures[0]
    return [opened[number] for number in sorted(opened)]
