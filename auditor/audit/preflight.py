"""A look before the audit: settings, keys, fleet, and one signed call per account."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec

from auditor.client.operations import BATCH_GET_DEVICE_STATE, states_of_devices
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AskedAccount, Keys, open_account, read_keys
from auditor.engine.worker_pool import Stop
from auditor.errors import AccountStoppedError, NotFoundError, PlatformError
from auditor.fleet.crawler import list_fleet
from auditor.fleet.discovery_journal import Listing
from auditor.fleet.materialize import write_listed
from auditor.fleet.snapshot import fleet_files, with_fleet, write_snapshot
from auditor.fleet.table import read_snapshot
from auditor.models import Answered, Device

LOOKED_AT = 1_000
"""Devices of a fleet that the platform lists that are looked at for one that is wanted, about."""


PATIENCE = 10.0
"""Seconds until an account that gives no usable answer is given up; somebody is waiting."""


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """What came of an account: how many devices it has, what one call said of the first, in how many seconds.

    ``products`` is how many products the platform lists, by whose own numbers ``devices`` are then; None: of a file.
    ``problem`` is None when the account works; ``clock_offset`` is in seconds that the platform's clock is ahead.
    """

    account: str
    endpoint: str
    devices: int
    duplicates: int
    products: int | None
    said: str
    seconds: float
    clock_offset: float
    problem: str | None


async def check(settings: Settings, *, fleet: str | None = None) -> list[AccountCheck]:
    """Reads every account's fleet file whole, or the first that the platform lists, and asks about one device of each.

    Raises:
        SettingsError, FleetError: what is wrong with them, in one sentence.
    """
    settings = with_fleet(settings, fleet)
    settings = msgspec.structs.replace(settings, give_up_after=min(PATIENCE, settings.give_up_after))
    keys = await anyio.to_thread.run_sync(read_keys, settings, abandon_on_cancel=True)
    checks: list[AccountCheck] = []
    with TemporaryDirectory(prefix="auditor-") as temporary:
        for account, own_keys in zip(settings.account, keys, strict=True):
            look = _Look(Path(temporary, f"{len(checks)}.parquet"))
            checks.append(await _check_account(settings, account, own_keys, look))
    return checks


async def _check_account(settings: Settings, account: Account, keys: Keys, look: "_Look") -> AccountCheck:
    for name, file in fleet_files(settings):
        if name == account.name:
            snapshot = await anyio.to_thread.run_sync(write_snapshot, [(name, file)], look.fleet)
            look.devices, look.duplicates = snapshot.devices, snapshot.duplicates
    said, problem, began = "", None, time.monotonic()
    async with open_account(settings, account, keys, 1) as asked:
        try:
            if account.fleet is not None and account.listed:
                await _list_some(asked, account.fleet, look)
            if (device := next(read_snapshot(look.fleet, account.name), None)) is None:
                said = f"none of the first {LOOKED_AT:,} devices is wanted"
                problem = f'account "{account.name}": no device is listed that is wanted' if look.over else None
            else:
                outcome = await asked.fetch(device)
                said = outcome.status if isinstance(outcome, Answered) else f"failed: {outcome.code}"
                problem = None if asked.never_reached is None else str(asked.never_reached)
                if problem is None and settings.since not in {None, "none"}:
                    problem = await _state_problem(asked, device)
        except AccountStoppedError as error:
            problem = str(error)
        return AccountCheck(
            account.name,
            account.endpoint,
            look.devices,
            look.duplicates,
            look.products,
            said,
            time.monotonic() - began,
            asked.client.clock_offset,
            problem,
        )


async def _state_problem(asked: AskedAccount, device: Device) -> str | None:
    """Why states of devices cannot be asked, which tell who can have changed since an earlier run; None: they can.

    Raises:
        AccountStoppedError: the account is refused.
    """
    sent = await asked.call_aside(BATCH_GET_DEVICE_STATE, states_of_devices([device]))
    if not isinstance(sent.result, PlatformError) or isinstance(sent.result, NotFoundError):
        return None
    return f'account "{asked.name}": since needs {BATCH_GET_DEVICE_STATE.name}, which fails: {sent.result}'


@dataclass(slots=True)
class _Look:
    """What is known of an account's fleet."""

    fleet: Path
    devices: int = 0
    duplicates: int = 0
    products: int | None = None
    over: bool = True


async def _list_some(asked: AskedAccount, source: FleetSource, look: _Look) -> None:
    """All products, and devices until one is wanted, ``LOOKED_AT`` at most.

    Raises:
        AccountStoppedError: a product that is named is none of the account's.
    """
    with Listing(look.fleet.with_suffix(".jsonl"), source) as listing:
        await list_fleet(asked, listing, stop=Stop(), enough=1)
        if unknown := sorted(set(listing.products) - listing.keys) if listing.keys else []:
            raise AccountStoppedError(asked.name, f"the platform lists no product {', '.join(unknown[:3])}")
        write = partial(write_listed, listing.path, look.fleet, asked.name, source)
        found = await anyio.to_thread.run_sync(write)
        while not found.devices and not listing.over and listing.rows < LOOKED_AT:
            await list_fleet(asked, listing, stop=Stop(), enough=2 * listing.rows)
            found = await anyio.to_thread.run_sync(write)
        look.products, look.over = len(listing.products), listing.over
        look.devices = sum(each.product.device_count or each.rows for each in listing.products.values())
