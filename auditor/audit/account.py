"""One account made ready to be asked: its client, its quota, what its answers teach, and its repeats."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog

from auditor import __about__
from auditor.audit.pages import read_device
from auditor.config import Account, Settings, read_secret
from auditor.errors import AccountStoppedError
from auditor.model import Device, Outcome, Secret, Sent
from auditor.pace.feedback import Feedback
from auditor.pace.quota import Quota
from auditor.pace.retry import Backoff, Pacer, Tally
from auditor.platform.answers import Answer
from auditor.platform.client import Client, Endpoint, trust
from auditor.platform.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, Operation, module_versions_of

log = structlog.get_logger()

Keys = tuple[str, Secret]
"""An access key id and its secret."""


def workers_each(settings: Settings) -> int:
    """Requests in flight of one account: an equal part of ``at_once``, one at the least."""
    return max(1, settings.at_once // len(settings.account))


def read_keys(account: Account) -> Keys:
    """The account's keys, from where the settings say that they lie, and a look at its ``ca_file``.

    Raises:
        SettingsError: one of them is not there or cannot be used.
    """
    trust(account.ca_file)
    key_id = read_secret(account.access_key_id, account=account.name, key="access_key_id").reveal()
    return key_id, read_secret(account.access_key_secret, account=account.name, key="access_key_secret")


class AskedAccount:
    """An account with an open connection pool. ``tally`` counts its requests."""

    def __init__(self, settings: Settings, account: Account, client: Client, known: Device | None = None) -> None:
        self.name = account.name
        self.client = client
        self._page_size = settings.page_size
        quota = Quota(account.rate)
        self._feedback = Feedback(
            account.name, quota, give_up_after=settings.give_up_after, worked_before=known is not None
        )
        ask_known = None if known is None else partial(self._ask_once, known)
        self._pacer = Pacer(quota, self._feedback, Backoff(attempts=settings.attempts), known=ask_known)
        self._offset = 0

    @property
    def tally(self) -> Tally:
        """Requests so far."""
        return self._pacer.tally

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
        return None if self.never_reached is None else str(self.never_reached)

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
        return await self.client.call(operation, module_versions_of(device, 1, self._page_size))

    async def fetch(self, device: Device) -> Outcome:
        """What became of one device.

        Raises:
            AccountStoppedError: the account is refused, or was never reached.
        """
        return await read_device(self._call, device, page_size=self._page_size)

    async def _call(self, operation: Operation, parameters: Mapping[str, str]) -> Sent[Answer]:
        sent = await self._pacer.send(lambda: self.client.call(operation, parameters))
        if (offset := round(self.client.clock_offset)) != self._offset:
            self._offset = offset
            log.warning("the platform's clock differs and is followed", account=self.name, seconds=offset)
        return sent


@asynccontextmanager
async def open_account(
    settings: Settings, account: Account, keys: Keys, workers: int, known: Device | None = None
) -> AsyncIterator[AskedAccount]:
    """Opens an account for ``workers`` requests at a time; ``known`` is a device that it has answered about before."""
    endpoint = Endpoint(
        url=account.endpoint,
        region_id=account.region_id,
        instance_id=account.instance_id,
        ca_file=account.ca_file,
        connect_timeout=settings.connect_timeout,
        timeout=settings.timeout,
        connections=workers,
        user_agent=f"auditor/{__about__.VERSION}",
    )
    async with Client(endpoint, *keys) as client:
        yield AskedAccount(settings, account, client, known)
