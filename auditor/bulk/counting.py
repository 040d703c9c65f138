"""Counting devices by a module's version: the platform's search index answers with one number, however many there are.

Without a product, one call of an account counts the devices of all its products. The index orders no texts, so versions
below another one are those that the newest run of the name has: a call for each of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from auditor.bulk.statements import count_statement
from auditor.client.operations import QUERY_DEVICE_BY_SQL
from auditor.client.parsers import parse_device_count
from auditor.concurrency import StopToken, run_in_abandonable_thread
from auditor.config.settings import Settings
from auditor.engine.account_session import AccountSession, open_accounts, read_credentials
from auditor.engine.allocation import concurrency_per_account
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import AccountStoppedError, InconsistentResponseError, PlatformError, UsageError
from auditor.query.run import Run
from auditor.query.versions import VersionOrder
from auditor.runs.folder import RunCatalog

CAVEAT = (
    "counted by the platform's search index, which may be behind the devices; how far is not documented. "
    "auditor run queries the devices themselves"
)
"""What each count depends on."""


@dataclass(frozen=True, slots=True)
class CountQuery:
    """One number to request.

    Attributes:
        product_key: the product; None: all of the account.
        version: the version; None: all devices with the module.
    """

    account: str
    product_key: str | None
    module_name: str
    version: str | None


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
        for product in (products or (None,))
    ]


def queries_below(
    settings: Settings, module: str, below: str, products: Sequence[str]
) -> tuple[list[CountQuery], Path]:
    """Return a query for each version of a module below another one that the newest complete run has, and that run.

    Versions of one product's module are ordered among each other. Of each account or product, the last query is for all
    devices with the module.

    Raises:
        UsageError: there is no such run.
        RunFolderError: it cannot be read.
    """
    runs = RunCatalog(Path(settings.directory), missing_ok=True).named(settings.name)
    newest = next((run for run in runs if run.sealed and run.is_success), None)
    if newest is None:
        raise UsageError(
            f"--below needs the versions of a complete run, and {settings.directory} has none of the name "
            f"{settings.name}; give --version, or run an audit first"
        )
    versions: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    names: dict[str, None] = {}
    with Run(newest.folder) as run:
        for row in run.inventory():
            if row.module_name.casefold() == module.casefold() and (not products or row.product_key in products):
                versions[row.account, row.product_key].add(row.module_version)
                names[row.module_name] = None
    return _below(settings, versions, next(iter(names), module), below, products), newest.folder


def _below(
    settings: Settings,
    versions: dict[tuple[str, str | None], set[str]],
    module: str,
    below: str,
    products: Sequence[str],
) -> list[CountQuery]:
    found: list[CountQuery] = []
    for total in exact_queries(settings, module, None, products):
        selected = set[str]()
        for (account, product), own in versions.items():
            if account == total.account and total.product_key in {None, product}:
                order = VersionOrder((*own, below))
                selected |= {version for version in own if version and order.compare(version, below) == "older"}
        found += [CountQuery(total.account, total.product_key, module, version) for version in sorted(selected)]
        found.append(total)
    return found


async def count_devices_by_version(settings: Settings, queries: Sequence[CountQuery]) -> list[IndexCount]:
    """Return the number of devices of each query, in their order.

    Raises:
        SettingsError: a credential is missing.
        UsageError: a name or version cannot be searched for.
        AccountStoppedError: an account is denied, was never reached, or cannot be searched.
    """
    statements = {each: _statement(each) for each in queries}
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    await check_quota_sharing(settings, credentials[0].redis_password)
    counts: dict[CountQuery, int] = {}
    async with AsyncExitStack() as stack:
        opened = await open_accounts(stack, settings, credentials, concurrency_per_account(settings))
        sessions = {session.name: session for session in opened}

        async def count(query: CountQuery) -> None:
            result = await request_count(sessions[query.account], statements[query])
            if isinstance(result, PlatformError):
                raise AccountStoppedError(query.account, f"its devices cannot be searched: {result}")
            counts[query] = result

        await run_workers(iter(statements), count, discard, concurrency=settings.concurrency, stop=StopToken())
    return [IndexCount(each, counts[each]) for each in queries]


def _statement(query: CountQuery) -> str:
    return count_statement(product_key=query.product_key, module=query.module_name, version=query.version)


async def request_count(session: AccountSession, statement: str) -> int | PlatformError:
    """Return the number that a statement counts, or why there is none."""
    sent = await session.call_optional(QUERY_DEVICE_BY_SQL, {"SQL": statement})
    if isinstance(sent.result, PlatformError):
        return sent.result
    try:
        return parse_device_count(sent.result)
    except InconsistentResponseError as error:
        return error
