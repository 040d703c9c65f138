"""Accounts made ready: their keys read, their connections and quotas opened, side by side."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import anyio

from auditor import __about__
from auditor.audit.account import AskedAccount
from auditor.audit.gates import Gates
from auditor.config import Account, Settings, SharedBudget
from auditor.errors import SettingsError
from auditor.keys import read_secret
from auditor.model import Device, Secret
from auditor.platform.client import Client, Endpoint
from auditor.platform.connections import trust
from auditor.proxies import Proxy, proxy_of
from auditor.settings_rules import refuse_one_quota


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
