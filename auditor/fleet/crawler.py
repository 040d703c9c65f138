"""Discovery of one account's devices: its products, then the pages of each product, several products concurrently."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from auditor.client.operations import (
    DEEP_LIST_ITEMS,
    LIST_OTA_MODULE_BY_PRODUCT,
    QUERY_DEVICE,
    QUERY_DEVICE_DEEP,
    QUERY_PRODUCT_LIST,
    Operation,
)
from auditor.client.parsers import parse_devices, parse_modules, parse_products
from auditor.client.responses import ApiResponse
from auditor.concurrency import StopToken, run_in_thread
from auditor.config.settings import FleetSource
from auditor.engine.account_session import AccountSession
from auditor.engine.device_reader import MAX_READINGS, CallOperation
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import (
    AccountStoppedError,
    ExitReasonCode,
    InconsistentResponseError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.fleet.discovery_journal import DEVICES_PER_PAGE, DiscoveryJournal, ProductDiscovery, products_pager
from auditor.fleet.materialize import MaterializedFleet, materialize
from auditor.fleet.pager import PageReference
from auditor.log import log
from auditor.models import ListedDevice, ListPage, Product

T = TypeVar("T")
U = TypeVar("U")

MAX_REJECTED_TOKENS = 3
"""Number of tokens that may be rejected without progress; each makes the reading go back to where none is needed."""

_NO_DEVICES: ListPage[ListedDevice] = ListPage((), None, 0, None)
"""The devices of a product that was deleted after it was listed."""


async def discover_account(
    session: AccountSession,
    journal: DiscoveryJournal,
    source: FleetSource,
    out: Path,
    *,
    stop: StopToken,
    max_devices: int | None = None,
    optional: bool = False,
) -> MaterializedFleet | None:
    """Discover an account's devices, up to ``max_devices``, and write them to a file like ``fleet.parquet``.

    Return what was written; None: the end was requested first. ``optional``: the account's devices can be queried
    without it, see ``AccountSession.call_optional``.

    Raises:
        AccountStoppedError: the account is denied, was never reached, or may not list its devices.
        RunNotWritableError: the journal or the file cannot be written.
    """
    enough_devices = max_devices
    while True:
        await crawl(session, journal, stop=stop, enough_devices=enough_devices, optional=optional)
        if stop.reason is not None and not journal.finished:
            return None
        found = await run_in_thread(materialize, journal.path, out, session.name, source, limit=max_devices)
        if max_devices is None or found.devices >= max_devices or journal.finished:
            return found
        enough_devices = enough_rows(journal, found, max_devices)


def enough_rows(journal: DiscoveryJournal, found: MaterializedFleet, max_devices: int) -> int:
    """Return how many rows to read up to now, since fewer devices than needed were found among those in the journal.

    Some are duplicates or excluded.
    """
    return journal.rows + max(max_devices - found.devices, journal.rows if found.excluded else 0)


async def crawl(
    session: AccountSession,
    journal: DiscoveryJournal,
    *,
    stop: StopToken,
    enough_devices: int | None = None,
    optional: bool = False,
) -> None:
    """Read the remaining pages of an account; a product that cannot be listed is recorded, and the others continue.

    It ends once ``enough_devices`` have been read. ``optional`` and the errors are those of ``discover_account``.
    """

    def is_done() -> bool:
        return stop.reason is not None or (enough_devices is not None and journal.rows >= enough_devices)

    call, workers = session.call_optional if optional else session.call, session.workers
    concurrent_products = anyio.CapacityLimiter(max(1, session.concurrency_for(QUERY_DEVICE, QUERY_PRODUCT_LIST)))
    if enough_devices is not None:
        workers = max(1, min(workers, (enough_devices - journal.rows) // DEVICES_PER_PAGE))
    try:
        await read_products(session, journal, is_done, call, stop)
        discover = partial(_discover_product, session, journal, is_done, concurrent_products, call=call)
        await run_workers(iter(journal.remaining()), discover, discard, concurrency=workers, stop=stop)
        if not is_done() and any(each.shrunk for each in journal.products.values()):
            recount = partial(_recount_products, session)
            await run_workers(iter((journal,)), recount, discard, concurrency=1, stop=stop)
    except AccountStoppedError as error:
        sentence = f"its devices cannot be listed: {error.sentence}"
        raise AccountStoppedError(session.name, sentence, reason_code=error.reason_code) from error


async def count_devices(session: AccountSession, journal: DiscoveryJournal, *, stop: StopToken) -> dict[str, int]:
    """Return how many devices each product has, as the platform counts them, without listing the devices.

    The list of products has the counts; of a product without one, the first page of its devices is read.

    Raises:
        AccountStoppedError: the account is denied, was never reached, or has a product that cannot be listed.
    """
    await read_products(session, journal, lambda: stop.reason is not None, session.call, stop)
    counts: dict[str, int] = {}
    for key, product in journal.products.items():
        if product.product.device_count is None:
            await _read_devices_page(session, journal, product, session.call)
            if product.failure is not None:
                raise AccountStoppedError(session.name, f"product {key}: {': '.join(product.failure)}")
        counts[key] = product.product.device_count or product.pager.total or product.rows
    return counts


async def read_products(
    session: AccountSession,
    journal: DiscoveryJournal,
    is_done: Callable[[], bool],
    call: CallOperation,
    stop: StopToken,
) -> None:
    """Read the remaining pages of the list of products; a page in flight is cancelled as that of a device is."""
    call_products = session.call_optional if journal.has_configured_products else call

    async def read(journal: DiscoveryJournal) -> None:
        while not journal.products_complete and not is_done():
            await _read_products_page(session, journal, call_products)

    await run_workers(iter((journal,)), read, discard, concurrency=1, stop=stop)


async def _read_products_page(session: AccountSession, journal: DiscoveryJournal, call: CallOperation) -> None:
    """Read the next page of the list of products; a key that may not list them uses the configured products."""
    page = await _fetch_products(call, journal.pager.next_page)
    if not isinstance(page, PlatformError):
        journal.record_products(page)
    elif journal.has_configured_products:
        log.warning("products_not_listed", account=session.name, reason=str(page))
        journal.record_products_denied(page.code, page.message)
    else:
        raise _stopped(session, page)


def _stopped(session: AccountSession, error: PlatformError) -> AccountStoppedError:
    """Return the error of an account that cannot be listed: it was not reached, or refuses the request."""
    temporary = isinstance(error, TransientError | ThrottledError | InconsistentResponseError)
    reason: ExitReasonCode = "unreachable_account" if temporary else "refused_account"
    return AccountStoppedError(session.name, str(error), reason_code=reason)


async def _fetch_products(call: CallOperation, place: PageReference) -> ListPage[Product] | PlatformError:
    parameters = {"CurrentPage": str(place.page), "PageSize": str(QUERY_PRODUCT_LIST.page_size)}
    return await fetch_page(call, QUERY_PRODUCT_LIST, parameters, place, parse_products)


async def _recount_products(session: AccountSession, journal: DiscoveryJournal) -> None:
    """Read the products' own device counts once more: devices that were removed in the meantime are no gap."""
    pager, seen = products_pager(), set[str]()
    while pager.phase == "forward":
        page = await _fetch_products(session.call_optional, pager.next_page)
        if isinstance(page, PlatformError):
            return
        counts = {each.product_key: each.device_count for each in page.items if each.product_key in journal.keys}
        journal.record_final_counts(counts)
        seen.update(counts)
        pager.add_page(ListPage(tuple(each.product_key for each in page.items), None, page.total, None))
    if pager.problem is None and len(seen) >= (pager.least_total or 0):
        journal.record_final_counts({key: 0 for key in journal.products if key not in seen})


async def _discover_product(
    session: AccountSession,
    journal: DiscoveryJournal,
    is_done: Callable[[], bool],
    concurrent_products: anyio.CapacityLimiter,
    product: ProductDiscovery,
    *,
    call: CallOperation,
) -> None:
    """Read the pages of a product; as many products are read concurrently as the quota needs at the current latency.

    A product that is read quickly changes less in the meantime, so that fewer pages are read again.
    """

    async def read_while(condition: Callable[[], bool]) -> None:
        while product.pager.phase != "ended" and product.failure is None and not is_done() and condition():
            await _read_devices_page(session, journal, product, call)
            concurrent_products.total_tokens = max(1, session.concurrency_for(QUERY_DEVICE, QUERY_PRODUCT_LIST))

    async with concurrent_products:
        await read_while(lambda: not _is_deep(product.pager.next_page))
    await read_while(lambda: True)  # deep pages have a quota of their own and take long, so that others may proceed


def _is_deep(page: PageReference) -> bool:
    """Return whether a page of devices has the quota of deep pages."""
    return (page.page - 1) * DEVICES_PER_PAGE >= DEEP_LIST_ITEMS


async def _read_devices_page(
    session: AccountSession, journal: DiscoveryJournal, product: ProductDiscovery, call: CallOperation
) -> None:
    """Read the next page of a product's devices."""
    key, place = product.product.product_key, product.pager.next_page
    parameters = {"ProductKey": key, "CurrentPage": str(place.page), "PageSize": str(DEVICES_PER_PAGE)}
    # The page number too: the documentation does not say whether a token makes it needless.
    parameters |= {} if place.token is None else {"NextToken": place.token}
    operation = QUERY_DEVICE_DEEP if _is_deep(place) else QUERY_DEVICE

    async def fetch(*, fresh_connection: bool = False) -> ListPage[ListedDevice] | PlatformError:
        send = partial(call, fresh_connection=fresh_connection)
        found = await fetch_page(send, operation, parameters, place, partial(parse_devices, product_key=key))
        # A product that was deleted has no devices.
        return _NO_DEVICES if isinstance(found, NotFoundError) and not journal.has_configured_products else found

    page = await fetch()
    if not isinstance(page, PlatformError) and not page.items and product.product.device_count != 0:
        # It could be the answer to another request. On a connection of its own it cannot.
        again = await fetch(fresh_connection=True)
        if isinstance(again, PlatformError) or again.items or (again.total or 0) > (page.total or 0):
            page = again
    if not isinstance(page, PlatformError):
        journal.record_devices(key, page)
    elif (
        isinstance(page, InvalidRequestError)
        and place.token is not None
        and product.rejected_tokens < MAX_REJECTED_TOKENS
    ):
        journal.record_rejected_token(key)
    else:
        log.warning("product_not_listed", account=session.name, product_key=key, reason=str(page))
        journal.fail(key, page.code, page.message)


async def fetch_page(
    call: CallOperation,
    operation: Operation,
    parameters: Mapping[str, str],
    place: PageReference,
    parse: Callable[[ApiResponse], ListPage[T]],
) -> ListPage[T] | PlatformError:
    """Return a page, or why there is none. A page that was requested by token may have any number."""
    size = int(parameters["PageSize"])

    def parse_page(response: ApiResponse) -> ListPage[T]:
        page = parse(response)
        if place.token is None and page.number not in {None, place.page}:
            raise InconsistentResponseError(f"requested page {place.page}, got page {page.number}")
        if len(page.items) > size:
            raise InconsistentResponseError(f"requested {size:,} items, got a page of {len(page.items):,}")
        return page

    return await read_consistently(call, operation, parameters, parse_page)


async def read_consistently(
    call: CallOperation, operation: Operation, parameters: Mapping[str, str], parse: Callable[[ApiResponse], U]
) -> U | PlatformError:
    """Return a parsed answer. One that contradicts its request is requested again, ``MAX_READINGS`` times at most."""
    readings = 0
    while True:
        sent = await call(operation, parameters)
        if isinstance(sent.result, PlatformError):
            return sent.result
        readings += 1
        try:
            return parse(sent.result)
        except InconsistentResponseError as inconsistency:
            if readings == MAX_READINGS:
                return inconsistency


async def fetch_product_modules(
    session: AccountSession,
    product_keys: Iterable[str],
    set_modules: Callable[[str, tuple[str, ...]], None],
    *,
    workers: int,
    stop: StopToken,
) -> None:
    """Fetch which modules products define, once for each product; ``set_modules`` receives them.

    Modules that cannot be fetched remain unknown, and the first reason is logged.
    """
    errors: list[str] = []

    async def fetch(key: str) -> None:
        parse = partial(parse_modules, product_key=key)
        parameters = {"ProductKey": key}
        found = await read_consistently(session.call_optional, LIST_OTA_MODULE_BY_PRODUCT, parameters, parse)
        if isinstance(found, PlatformError):
            errors.append(str(found))
        elif found:  # every product has a module, so an empty list means nothing
            set_modules(key, found)

    try:
        await run_workers(iter(product_keys), fetch, discard, concurrency=workers, stop=stop)
    except AccountStoppedError as error:  # the query of its devices raises it too
        errors.append(error.sentence)
    if errors:
        log.warning("modules_unknown", account=session.name, products=len(errors), reason=errors[0])
