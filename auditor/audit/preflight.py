"""Preflight checks before an audit: settings, credentials, fleet, and one signed call per account."""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from auditor.client.operations import BATCH_GET_DEVICE_STATE, device_state_params
from auditor.concurrency import StopToken, run_in_abandonable_thread, run_in_thread
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AccountSession, Credentials, open_account, read_credentials
from auditor.errors import AccountStoppedError, NotFoundError, PlatformError
from auditor.fleet.crawler import crawl
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.materialize import materialize
from auditor.fleet.snapshot import apply_fleet_option, fleet_files, write_snapshot
from auditor.fleet.table import read_snapshot
from auditor.models import Device, DeviceResult

MAX_LISTED_DEVICES = 1_000
"""Approximate number of devices that are discovered to find one that matches the fleet settings."""

MAX_UNREACHABLE_SECONDS = 10.0
"""Seconds until an account that gives no usable answer is abandoned; a person is waiting."""


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """Result of the checks of one account.

    With ``products`` (None for a fleet file), ``devices`` are those of the platform's counts. ``result`` is what the
    call for the first device returned, in ``seconds``; ``clock_offset`` is how many seconds the platform's clock is
    ahead; ``problem`` is why the account does not work, if it does not.
    """

    account: str
    endpoint: str
    devices: int
    duplicates: int
    products: int | None
    result: str
    seconds: float
    clock_offset: float
    problem: str | None


@dataclass(frozen=True, slots=True)
class _FleetPreview:
    """What is known about an account's fleet; ``complete``: it holds all devices, not only the first ones."""

    devices: int = 0
    duplicates: int = 0
    products: int | None = None
    complete: bool = True


async def preflight(settings: Settings, *, fleet: str | None = None) -> list[AccountCheck]:
    """Read each account's fleet file, or discover its first devices, and query one device of each account.

    Raises:
        SettingsError, FleetError: the settings or the fleet cannot be used.
    """
    settings = apply_fleet_option(settings, fleet)
    settings = msgspec.structs.replace(settings, give_up_after=min(MAX_UNREACHABLE_SECONDS, settings.give_up_after))
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    checks: list[AccountCheck] = []
    with TemporaryDirectory(prefix="auditor-") as work:
        for account, own in zip(settings.account, credentials, strict=True):
            checks.append(await _check_account(settings, account, own, Path(work, f"{len(checks)}.parquet")))
    return checks


async def _check_account(settings: Settings, account: Account, credentials: Credentials, fleet: Path) -> AccountCheck:
    preview = _FleetPreview()
    for name, file in fleet_files(settings):
        if name == account.name:
            snapshot = await run_in_thread(write_snapshot, [(name, file)], fleet)
            preview = _FleetPreview(snapshot.devices, snapshot.duplicates)
    result, problem, started_at = "", None, time.monotonic()
    async with open_account(settings, account, credentials, 1) as session:
        try:
            if account.fleet is not None and account.uses_discovery:
                preview = await _discover_first_devices(session, account.fleet, fleet)
            if (device := next(read_snapshot(fleet, account.name), None)) is not None:
                result, problem = await _check_device(session, device, states=settings.since not in {None, "none"})
            else:
                result = f"none of the first {MAX_LISTED_DEVICES:,} devices matches the fleet settings"
                if preview.complete:
                    problem = f'account "{account.name}": no device matches the fleet settings'
        except AccountStoppedError as error:
            problem = str(error)
        counts = preview.devices, preview.duplicates, preview.products
        seconds, clock_offset = time.monotonic() - started_at, session.client.clock_offset
        return AccountCheck(account.name, account.endpoint, *counts, result, seconds, clock_offset, problem)


async def _check_device(session: AccountSession, device: Device, *, states: bool) -> tuple[str, str | None]:
    """Return what a query of one device resulted in, and the problem of the account, if there is one.

    ``states``: the audit needs connection states, too, to find devices that may have changed.
    """
    outcome = await session.fetch(device)
    result = outcome.status if isinstance(outcome, DeviceResult) else f"failed: {outcome.code}"
    if session.unreached_error is not None:
        return result, str(session.unreached_error)
    if states:
        sent = await session.call_optional(BATCH_GET_DEVICE_STATE, device_state_params([device]))
        if isinstance(sent.result, PlatformError) and not isinstance(sent.result, NotFoundError):
            operation = BATCH_GET_DEVICE_STATE.name
            return result, f'account "{session.name}": since needs {operation}, which fails: {sent.result}'
    return result, None


async def _discover_first_devices(session: AccountSession, source: FleetSource, fleet: Path) -> _FleetPreview:
    """Discover all products, and about ``MAX_LISTED_DEVICES`` devices or fewer until one matches the fleet settings."""
    with DiscoveryJournal(fleet.with_suffix(".jsonl"), source) as journal:
        await crawl(session, journal, stop=StopToken(), enough_devices=1)
        if unknown := sorted(set(journal.products) - journal.keys) if journal.keys else []:
            raise AccountStoppedError(session.name, f"the platform lists no product {', '.join(unknown[:3])}")
        found = await run_in_thread(materialize, journal.path, fleet, session.name, source)
        while not found.devices and not journal.finished and journal.rows < MAX_LISTED_DEVICES:
            await crawl(session, journal, stop=StopToken(), enough_devices=2 * journal.rows)
            found = await run_in_thread(materialize, journal.path, fleet, session.name, source)
        devices = sum(each.product.device_count or each.rows for each in journal.products.values())
        return _FleetPreview(devices, products=len(journal.products), complete=journal.finished)
