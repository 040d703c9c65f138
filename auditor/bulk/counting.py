"""Counting devices by a module's version: the platform's search index answers with one number, however many there are.

Without a product, one call of an account counts the devices of all its products. The index orders no texts, and its
language has no list of values. So versions below another one are those that the newest run of the name has: a call for
each of them, or for all that begin alike if nothing that begins so can be another version than an older one.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
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
from auditor.runs.folder import RunCatalog, StoredRun

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
    """Return queries for the versions of a module below another one that the newest complete run has, and that run.

    Versions of one product's module are ordered among each other. Versions that begin alike may have one query. Of each
    account or product, the last query is for all devices with the module.

    Raises:
        UsageError: there is no such run.
        RunFolderError: it cannot be read.
    """
    newest = _newest_run(settings, module)
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


def _newest_run(settings: Settings, module: str) -> StoredRun | None:
    """Return the newest complete run of the name that read a module."""
    runs = RunCatalog(Path(settings.directory), missing_ok=True).named(settings.name)
    read = (run for run in runs if run.manifest.modules is None or module.casefold() in run.manifest.modules)
    return next((run for run in read if run.sealed and run.is_success), None)


def _below(
    settings: Settings,
    versions: dict[tuple[str, str | None], set[str]],
    module: str,
    below: str,
    products: Sequence[str],
) -> list[CountQuery]:
    found: list[CountQuery] = []
    for total in exact_queries(settings, module, None, products):
        own = {
            product: each
            for (account, product), each in versions.items()
            if account == total.account and total.product_key in {None, product}
        }
        groups = _group_older(own, below)
        query = partial(CountQuery, total.account, total.product_key, module)
        found += [query(version, is_prefix) for version, is_prefix in sorted(groups.items())]
        found.append(total)
    return found


def _group_older(versions: Mapping[str | None, set[str]], below: str) -> dict[str, bool]:
    """Return the versions of products that are older than another one, or the beginnings of several, and which it is.

    No version is in two groups.
    """
    older = {product: set(_older(own, below)) for product, own in versions.items()}
    left, groups = set().union(*older.values()), dict[str, bool]()
    prefixes = sorted({each for version in left for each in _beginnings(version)}, key=lambda each: (len(each), each))
    for prefix in prefixes:
        covered = {version for version in left if version.startswith(prefix)}
        # An index that ignores case would count those that differ only in it, too.
        alike = {version for version in left if version.casefold().startswith(prefix.casefold())}
        if len(covered) > 1 and covered == alike and _is_older(prefix, versions, older, below):
            groups[prefix] = True
            left -= covered
    return groups | dict.fromkeys(left, False)


def _older(versions: set[str], below: str) -> Iterator[str]:
    order = VersionOrder((*versions, below))
    return (version for version in versions if version and order.compare(version, below) == "older")


def _beginnings(version: str) -> Iterator[str]:
    """Yield the beginnings of a version that end with a dot: ``1.`` and ``1.2.`` of ``1.2.3``."""
    parts = re.match(r"[A-Za-z]?\d+\.(?:\d+\.)*", version, re.ASCII)
    if parts is not None:
        yield from (version[: match.end()] for match in re.finditer(r"\.", parts[0]))


def _is_older(
    prefix: str, versions: Mapping[str | None, set[str]], older: Mapping[str | None, set[str]], below: str
) -> bool:
    """Return whether every version that begins with a prefix is older, also one that the run does not have."""
    for product, own in versions.items():
        lowest, highest = f"{prefix}0", f"{prefix}{_HIGHEST}"
        if not {lowest, highest} <= {*_older({*own, lowest, highest}, below)}:
            return False
        if any(version.startswith(prefix) and version not in older[product] for version in own):
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
    return f"the newest complete run has them: auditor inventory {shlex.quote(str(newest.folder))}"


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
