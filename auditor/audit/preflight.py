"""Preflight checks before an audit: settings, credentials, fleet, and one signed call per account."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from auditor.audit.permissions import find_missing_permissions
from auditor.audit.silence import find_believed_run, read_devices_with_modules
from auditor.concurrency import StopToken, run_in_abandonable_thread, run_in_thread
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AccountSession, open_account
from auditor.engine.credentials import Credentials, read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.open_files import reserve_open_files
from auditor.errors import AccountStoppedError
from auditor.fleet.crawler import crawl
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.materialize import materialize
from auditor.fleet.snapshot import apply_fleet_option, fleet_files, write_snapshot
from auditor.fleet.table import read_snapshot
from auditor.models import Device, DeviceFailure, DeviceResult, Outcome
from auditor.planning.device_counts import MAX_UNREACHABLE_SECONDS
from auditor.runs.manifest import SilentAccount
from auditor.storage.files import private_folder

MAX_LISTED_DEVICES = 1_000
"""Approximate number of devices that are discovered to find one that matches the fleet settings."""

MAX_TRIED_DEVICES = 10
"""Devices of an account that are queried until one exists; they are spread over its fleet."""


MAX_FAILED_DEVICES = 3
"""Devices of an account that may fail until it counts as a problem: each costs its retries."""


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
    reserve_open_files(settings)
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    await check_quota_sharing(settings, credentials[0].redis_password)
    checks: list[AccountCheck] = []
    with private_folder("check") as work:
        for account, own in zip(settings.account, credentials, strict=True):
            checks.append(await _check_account(settings, account, own, work / f"{len(checks)}.parquet"))
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
            if next(read_snapshot(fleet, account.name), None) is not None:
                earlier = await run_in_thread(find_believed_run, Path(settings.directory), settings.name, account.name)
                result, problem = await _check_devices(session, settings, account, fleet, earlier=earlier)
            else:
                result = f"none of the first {MAX_LISTED_DEVICES:,} devices matches the fleet settings"
                if preview.complete:
                    problem = f'account "{account.name}": no device matches the fleet settings'
        except AccountStoppedError as error:
            problem = str(error)
        counts = preview.devices, preview.duplicates, preview.products
        seconds, clock_offset = time.monotonic() - started_at, session.client.clock_offset
    if session.lacks_permission:  # it is stopped, and may have called only one of the operations that are denied
        async with open_account(settings, account, credentials, 1) as session:
            missing = await find_missing_permissions(session, settings, account)
        problem = f'account "{account.name}": {"; ".join(missing)}' if missing else problem
    return AccountCheck(account.name, account.endpoint, *counts, result, seconds, clock_offset, problem)


async def _check_devices(
    session: AccountSession, settings: Settings, account: Account, fleet: Path, *, earlier: Path | None
) -> tuple[str, str | None]:
    """Return what the query of the first device resulted in, and the problem of the account, if there is one."""
    outcomes = await _try_devices(session, fleet)
    first, *_, (device, last) = (outcomes[0], *outcomes)
    result = first[1].status if isinstance(first[1], DeviceResult) else f"failed: {first[1].code}"
    problem: str | None = None
    if session.unreached_error is not None:
        problem = str(session.unreached_error)
    elif isinstance(last, DeviceFailure):
        tried = f"none of {len(outcomes)} queried devices has a result"
        problem = f'account "{session.name}": {tried}: {last.code}: {last.message}'
    elif last.status == "not_found":
        problem = str(SilentAccount(session.name, "not_found", len(outcomes)))
    elif last.status == "empty" and (silenced := await _query_silenced(session, earlier)):
        problem = str(SilentAccount(session.name, "empty", silenced))
    elif missing := await find_missing_permissions(session, settings, account, device):
        problem = f'account "{session.name}": {"; ".join(missing)}'
    return result, problem


async def _try_devices(session: AccountSession, fleet: Path) -> list[tuple[Device, Outcome]]:
    """Query devices until one exists. The first failures are passed over: they may be about these devices alone."""
    outcomes: list[tuple[Device, Outcome]] = []
    failures = 0
    for device in _spread_devices(fleet, session.name):
        outcome = await session.fetch(device)
        outcomes.append((device, outcome))
        failures += isinstance(outcome, DeviceFailure)
        exists = isinstance(outcome, DeviceResult) and outcome.status != "not_found"
        if exists or failures == MAX_FAILED_DEVICES or session.unreached_error is not None:
            break
    return outcomes


async def _query_silenced(session: AccountSession, earlier: Path | None) -> int:
    """Query devices that had modules in an earlier run; return their number if none of them has any, otherwise 0."""
    devices = [] if earlier is None else await run_in_thread(read_devices_with_modules, earlier, session.name)
    for device in devices:
        outcome = await session.fetch(device)
        if not isinstance(outcome, DeviceResult) or outcome.status == "ok":
            return 0
    return len(devices)


def _spread_devices(fleet: Path, account: str) -> Iterator[Device]:
    """Yield the first device of an account, then others at equal distances, ``MAX_TRIED_DEVICES`` at most."""
    devices = read_snapshot(fleet, account)
    yield next(devices)
    count = sum(1 for _ in devices)
    step = max(1, count // (MAX_TRIED_DEVICES - 1))
    yield from islice(read_snapshot(fleet, account), step, step * MAX_TRIED_DEVICES, step)


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
