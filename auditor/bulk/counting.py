"""Counting devices by a module's version: the platform's search index answers with one number, however many there are.

Without a product, one call of an account counts the devices of all its products. The index orders no texts, and its
language has no list of values. So versions below another one are those that the newest run of the name has: a call for
each of them, or for all that begin alike if nothing that begins so can be another version than an older one. The order
depends on the versions of a product: one that is not older in each product that has it takes a call for each product.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from auditor.bulk.statements import count_statement
from auditor.client.operations import QUERY_DEVICE_BY_SQL
from auditor.client.parsers import parse_device_count
from auditor.concurrency import StopToken, run_in_abandonable_thread
from auditor.config.settings import Settings
from auditor.engine.account_session import AccountSession, open_accounts
from auditor.engine.allocation import concurrency_per_account
from auditor.engine.credentials import read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import AccountStoppedError, InconsistentResponseError, PlatformError, UsageError
from auditor.query.run import Run
from auditor.query.version_dates import Order
from auditor.query.versions import VersionOrder
from auditor.runs.folder import RunCatalog, StoredRun
from auditor.text.shell import format_command

CAVEAT = (
    "counted by the platform's search index, which may be behind the devices; how far is not documented. "
    "auditor run queries the devices themselves"
)
"""What each count depends on."""

_HIGHEST = 999_999_999
"""A number in a version that none exceeds."""


@dataclass(frozen=True, slots=True)
class CountQuery:
    """One number to request.

    Attributes:
        product_key: the product; None: all of the account.
        version: the version; None: all devices with the module.
        is_prefix: whether all versions that begin with ``version`` are counted.
    """

    account: str
    product_key: str | None
    module_name: str
    version: str | None
    is_prefix: bool = False

    @property
    def label(self) -> str | None:
        """The version as it is printed: ``1.2.*`` means all that begin so."""
        return f"{self.version}*" if self.is_prefix else self.version


@dataclass(frozen=True, slots=True)
class BelowQueries:
    """The queries for the versions below another one.

    Attributes:
        queries: of each account or product, the last one is for all devices with the module.
        run: the run folder whose versions they are.
        uncompared: devices of that run whose version cannot be compared; only the queries for all devices count them.
    """

    queries: list[CountQuery]
    run: Path
    uncompared: int


@dataclass(frozen=True, slots=True)
class IndexCount:
    """A number of devices, as the index has it."""

    query: CountQuery
    devices: int


def exact_queries(settings: Settings, module: str, version: str | None, products: Sequence[str]) -> list[CountQuery]:
    """Return a query for each account, or for each of its products if some are named."""
    return [
        CountQuery(account.name, product, module, version)
        for account in settings.account
        for product in (dict.fromkeys(products) or (None,))
    ]


def queries_below(settings: Settings, module: str, below: str, products: Sequence[str]) -> BelowQueries:
    """Return queries for the versions of a module below another one that the newest complete run has.

    Versions of one product's module are ordered among each other. Versions that begin alike may have one query.

    Raises:
        UsageError: there is no such run, or none of its versions can be compared.
        RunFolderError: it cannot be read.
    """
    newest = _newest_run(settings, module)
    if newest is None:
        raise UsageError(_describe_missing_run(settings, module))
    devices: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    names: dict[str, None] = {}
    accounts = {account.name for account in settings.account}
    with Run(newest.folder) as run:
        for row in run.inventory():
            is_selected = row.account in accounts and (not products or row.product_key in products)
            if is_selected and row.module_name.casefold() == module.casefold():
                devices[row.account, row.product_key][row.module_version] += row.devices
                names[row.module_name] = None
    orders = {key: _compare(own, below) for key, own in devices.items()}
    if orders and all(order == "unordered" for own in orders.values() for order in own.values()):
        raise UsageError(
            f"--below {below}: none of the versions of {module} in {newest.folder} can be compared with it; give one "
            f"of the same form, such as {next(iter(next(iter(devices.values()))))!r}"
        )
    found: list[CountQuery] = []
    uncompared = sum(devices[key][each] for key, own in orders.items() for each in own if own[each] == "unordered")
    for total in exact_queries(settings, next(iter(names), module), None, products):
        of_products = {
            product: own
            for (account, product), own in orders.items()
            if account == total.account and total.product_key in {None, product}
        }
        older = {product: _older(own) for product, own in of_products.items()}
        everywhere = _older_everywhere(of_products)
        groups = _group_older(of_products, below)
        query = partial(replace, total)
        found += [query(version=version, is_prefix=is_prefix) for version, is_prefix in sorted(groups.items())]
        rest = sorted((version, product or "") for product, own in older.items() for version in own - everywhere)
        found += [query(version=version, product_key=product) for version, product in rest if product]
        # Devices of an unknown product: which versions theirs are compared with is unknown, too.
        uncompared += sum(devices[total.account, None][version] for version, product in rest if not product)
        found.append(total)
    return BelowQueries(found, newest.folder, uncompared)


def _newest_run(settings: Settings, module: str | None) -> StoredRun | None:
    """Return the newest complete run of the name, or the newest one that read a module."""
    runs = RunCatalog(Path(settings.directory), missing_ok=True).named(settings.name)
    read = (
        run
        for run in runs
        if module is None or run.manifest.modules is None or module.casefold() in run.manifest.modules
    )
    return next((run for run in read if run.sealed and run.is_success), None)


def _describe_missing_run(settings: Settings, module: str) -> str:
    needed = "--below needs the versions of a complete run"
    other = _newest_run(settings, None)
    if other is not None:
        names = " and ".join(other.manifest.modules or ())
        return (
            f"{needed} that read the module {module}; {settings.directory} has complete runs of the name "
            f"{settings.name}, but its runs read only the module {names}; give --version, or run an audit of all "
            "modules under another name"
        )
    return (
        f"{needed}, and {settings.directory} has none of the name {settings.name}; give --version, or run an audit "
        "first"
    )


def _group_older(orders: Mapping[str | None, Mapping[str, Order]], below: str) -> dict[str, bool]:
    """Return the versions that are older in each product that has them, or the beginnings of several, and which it is.

    No version is in two groups.
    """
    left, groups = _older_everywhere(orders), dict[str, bool]()
    prefixes = sorted({each for version in left for each in _beginnings(version)}, key=lambda each: (len(each), each))
    for prefix in prefixes:
        covered = {version for version in left if version.startswith(prefix)}
        # An index that ignores case would count those that differ only in it, too.
        alike = {version for version in left if version.casefold().startswith(prefix.casefold())}
        if len(covered) > 1 and covered == alike and _is_older(prefix, orders, below):
            groups[prefix] = True
            left -= covered
    return groups | dict.fromkeys(left, False)


def _compare(versions: Iterable[str], below: str) -> dict[str, Order]:
    """Return how each version of a product compares to another one."""
    order = VersionOrder((*versions, below))
    return {version: order.compare(version, below) for version in versions}


def _older(orders: Mapping[str, Order]) -> AbstractSet[str]:
    return {version for version, order in orders.items() if order == "older"}


def _older_everywhere(orders: Mapping[str | None, Mapping[str, Order]]) -> set[str]:
    """Return the versions that are older in each product that has them."""
    older = set[str]().union(*(_older(own) for own in orders.values()))
    return older.difference(*(own.keys() - _older(own) for own in orders.values()))


def _beginnings(version: str) -> Iterator[str]:
    """Yield the beginnings of a version that end with a dot: ``1.`` and ``1.2.`` of ``1.2.3``."""
    parts = re.match(r"[A-Za-z]?\d+\.(?:\d+\.)*", version, re.ASCII)
    if parts is not None:
        yield from (version[: match.end()] for match in re.finditer(r"\.", parts[0]))


def _is_older(prefix: str, orders: Mapping[str | None, Mapping[str, Order]], below: str) -> bool:
    """Return whether every version that begins with a prefix is older, also one that the run does not have."""
    for own in orders.values():
        lowest, highest = f"{prefix}0", f"{prefix}{_HIGHEST}"
        if not {lowest, highest} <= _older(_compare({*own, lowest, highest}, below)):
            return False
        if any(version.startswith(prefix) and order != "older" for version, order in own.items()):
            return False
    return True


async def count_devices_by_version(settings: Settings, queries: Sequence[CountQuery]) -> list[IndexCount]:
    """Return the number of devices of each query, in their order.

    Raises:
        SettingsError: a credential is missing.
        UsageError: a name or version cannot be searched for.
        AccountStoppedError: an account is denied, was never reached, or cannot be searched.
    """
    statements = {each: _statement(each) for each in queries}
    advice = await run_in_abandonable_thread(_advise_run, settings, queries[0].module_name if queries else "")
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    await check_quota_sharing(settings, credentials[0].redis_password)
    counts: dict[CountQuery, int] = {}
    async with AsyncExitStack() as stack:
        opened = await open_accounts(stack, settings, credentials, concurrency_per_account(settings))
        sessions = {session.name: session for session in opened}

        async def count(query: CountQuery) -> None:
            result = await request_count(sessions[query.account], statements[query])
            if isinstance(result, PlatformError):
                raise AccountStoppedError(query.account, f"its devices cannot be searched: {result}; {advice}")
            counts[query] = result

        await run_workers(iter(statements), count, discard, concurrency=settings.concurrency, stop=StopToken())
    return [IndexCount(each, counts[each]) for each in queries]


def _advise_run(settings: Settings, module: str) -> str:
    """Return where the numbers are, if the platform does not count."""
    newest = _newest_run(settings, module)
    if newest is None:
        return "an audit counts them, too: auditor run"
    return f"the newest complete run has them: {format_command('auditor inventory', newest.folder)}"


def _statement(query: CountQuery) -> str:
    version, prefix = (None, query.version or "") if query.is_prefix else (query.version, "")
    return count_statement(
        product_key=query.product_key, module=query.module_name, version=version, version_prefix=prefix
    )


async def request_count(session: AccountSession, statement: str) -> int | PlatformError:
    """Return the number that a statement counts, or why there is none."""
    sent = await session.call_optional(QUERY_DEVICE_BY_SQL, {"SQL": statement})
    if isinstance(sent.result, PlatformError):
        return sent.result
    try:
        return parse_device_count(sent.result)
    except InconsistentResponseError as error:
        return error
