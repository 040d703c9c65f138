"""Device counts of listed fleets, as the platform reports them, for a plan before the first run."""

from collections.abc import Collection

import msgspec

from auditor.concurrency import StopToken, run_in_abandonable_thread
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AccountSession, open_account, read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.errors import AccountStoppedError, SettingsError
from auditor.fleet.crawler import count_devices
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.storage.files import private_folder

MAX_UNREACHABLE_SECONDS = 10.0
"""Seconds until an account that gives no usable answer is stopped; a person is waiting."""


async def count_listed_fleets(settings: Settings, names: Collection[str]) -> dict[str, dict[int, int]]:
    """Return the number of products of each named account by their number of devices, as the platform counts them.

    That is a call per 200 products, and one for each product without a count. Filters for devices are not applied.

    Raises:
        SettingsError: a key is missing.
        AccountStoppedError: an account is denied, was not reached, or may not list its products.
    """
    settings = settings.restrict_to_accounts(names)
    settings = msgspec.structs.replace(settings, give_up_after=min(MAX_UNREACHABLE_SECONDS, settings.give_up_after))
    try:
        credentials = await run_in_abandonable_thread(read_credentials, settings)
    except SettingsError as error:
        raise SettingsError(f"{error}; {advise_fleet_file(names)}") from None
    await check_quota_sharing(settings, credentials[0].redis_password)
    found: dict[str, dict[int, int]] = {}
    with private_folder("plan") as work:
        for account, own in zip(settings.account, credentials, strict=True):
            async with open_account(settings, account, own, 1) as session:
                with DiscoveryJournal(work / f"{len(found)}.jsonl", account.fleet or FleetSource()) as journal:
                    found[account.name] = await _count_products(session, account, journal)
    return found


async def _count_products(session: AccountSession, account: Account, journal: DiscoveryJournal) -> dict[int, int]:
    try:
        counts = await count_devices(session, journal, stop=StopToken())
    except AccountStoppedError as error:
        sentence = f"its devices cannot be counted: {error.sentence}; {advise_fleet_file([account.name])}"
        raise AccountStoppedError(account.name, sentence, reason_code=error.reason_code) from error
    by_size: dict[int, int] = {}
    for devices in counts.values():
        by_size[devices] = by_size.get(devices, 0) + 1
    return by_size


def advise_fleet_file(names: Collection[str]) -> str:
    """Return how to plan accounts from a fleet file instead, with a command for one of them."""
    each = "" if len(names) == 1 else ", one account at a time"
    return f"or plan with a fleet file{each}: auditor plan CONFIG --account {min(names)} --fleet FILE"
