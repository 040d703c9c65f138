"""Device counts of listed fleets, as the platform reports them, for a plan before the first run.

The platform counts the devices of a product, and not those that match the filters of a fleet. Their share is estimated
from some pages of the lists. Pages are spread over a list, since it has the newest devices first.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial

import msgspec

from auditor.client.operations import QUERY_DEVICE
from auditor.client.parsers import parse_devices
from auditor.concurrency import StopToken, run_in_abandonable_thread
from auditor.config.settings import Account, FleetSource, Patterns, Settings
from auditor.engine.account_session import AccountSession, open_account
from auditor.engine.credentials import read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.errors import AccountStoppedError, NotFoundError, PlatformError, SettingsError
from auditor.fleet.crawler import count_devices, fetch_page
from auditor.fleet.discovery_journal import DEVICES_PER_PAGE, MAX_DEVICES_BY_PAGE_NUMBER, DiscoveryJournal
from auditor.fleet.pager import PageReference
from auditor.models import ListedDevice
from auditor.storage.files import private_folder
from auditor.text.globs import matches_any
from auditor.text.shell import format_command

SAMPLED_PAGES = 40
"""Pages of devices that are read of an account with filters: 2,000 devices."""

MAX_UNREACHABLE_SECONDS = 10.0
"""Seconds until an account that gives no usable answer is stopped; a person is waiting."""


async def count_listed_fleets(settings: Settings, names: Collection[str]) -> dict[str, dict[int, int]]:
    """Return the number of products of each named account by their number of devices, as the platform counts them.

    That is a call per 200 products, and one for each product without a count; with filters for devices, which are
    applied to a sample, up to ``SAMPLED_PAGES`` further ones. Devices that were never activated count otherwise.

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
        source = account.fleet or FleetSource()
        if source.filters_devices:
            counts = await _estimate_matching(
                session, counts, source, skip_never_activated=account.skips_never_activated
            )
    except AccountStoppedError as error:
        sentence = f"its devices cannot be counted: {error.sentence}; {advise_fleet_file([account.name])}"
        raise AccountStoppedError(account.name, sentence, reason_code=error.reason_code) from error
    return dict(Counter(counts.values()))


async def _estimate_matching(
    session: AccountSession, counts: Mapping[str, int], source: FleetSource, *, skip_never_activated: bool
) -> dict[str, int]:
    """Return how many devices of each product match a fleet's filters, by their share of the sampled pages.

    A product without a sampled page has the share of the others.
    """
    shares: dict[str, float] = {}
    for product_key, numbers in _sampled_pages(counts).items():
        found: list[bool] = []
        for number in numbers:
            parameters = {"ProductKey": product_key, "CurrentPage": str(number), "PageSize": str(DEVICES_PER_PAGE)}
            parse = partial(parse_devices, product_key=product_key)
            page = await fetch_page(session.call, QUERY_DEVICE, parameters, PageReference(number), parse)
            if isinstance(page, NotFoundError):  # deleted meanwhile
                break
            if isinstance(page, PlatformError):
                raise AccountStoppedError(session.name, f"product {product_key}: {page}")
            for device in page.items:
                active = device.device_status != "UNACTIVE" or not skip_never_activated
                found.append(active and _matches(device, source))
        if found:
            shares[product_key] = sum(found) / len(found)
    sampled = sum(counts[key] for key in shares)
    mean = sum(counts[key] * share for key, share in shares.items()) / sampled if sampled else 1.0
    return {key: round(count * shares.get(key, mean)) for key, count in counts.items()}


def _sampled_pages(counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return which pages to read of which products: the same number of each large product, spread over its list."""
    largest = sorted((key for key in counts if counts[key]), key=lambda key: -counts[key])[:SAMPLED_PAGES]
    pages: dict[str, list[int]] = {}
    remaining = SAMPLED_PAGES
    for position, key in reversed([*enumerate(largest)]):  # what a small product does not need is left to larger ones
        listed = math.ceil(min(counts[key], MAX_DEVICES_BY_PAGE_NUMBER) / DEVICES_PER_PAGE)
        number = min(listed, remaining // (position + 1))
        pages[key] = [1 + listed * each // number for each in range(number)]
        remaining -= number
    return pages


def _matches(device: ListedDevice, source: FleetSource) -> bool:
    return all(_conditions(device, source.include)) and not any(_conditions(device, source.exclude))


def _conditions(device: ListedDevice, patterns: Patterns) -> Iterator[bool]:
    if patterns.device_name:
        yield matches_any(device.device_name, patterns.device_name)
    if patterns.status:
        yield device.device_status in patterns.status


def advise_fleet_file(names: Collection[str]) -> str:
    """Return how to plan accounts from a fleet file instead, with a command for one of them."""
    each = "" if len(names) == 1 else ", one account at a time"
    command = format_command("auditor plan", "CONFIG", flags=[("--account", min(names)), ("--fleet", "FILE")])
    return f"or plan with a fleet file{each}: {command}"
