"""Asking for one account's fleet: its products, then the devices of each, page after page, products side by side."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog

from auditor.client.operations import (
    DEEP,
    LIST_OTA_MODULE_BY_PRODUCT,
    QUERY_DEVICE,
    QUERY_DEVICE_DEEP,
    QUERY_PRODUCT_LIST,
    Operation,
)
from auditor.client.parsers import devices_of, modules_of, products_of
from auditor.client.responses import Answer
from auditor.config.settings import FleetSource
from auditor.engine.account_session import AskedAccount
from auditor.engine.worker_pool import Stop, fan_out
from auditor.errors import (
    AccountStoppedError,
    InconsistentPagesError,
    NotFoundError,
    PlatformError,
    RefusedRequestError,
)
from auditor.fleet.discovery_journal import DEVICES_A_PAGE, MOST, PRODUCTS_A_PAGE, Listing, ProductListing
from auditor.fleet.materialize import ListedFleet, write_listed
from auditor.fleet.pager import Pager, Place
from auditor.models import Listed, ListedDevice, Sent

log = structlog.get_logger()


T = TypeVar("T")


READINGS = 4
"""How often a page is asked for that answers with the number of another one."""


REFUSALS = 3
"""Tokens that may be refused, each of which costs reading from where none is needed, without one page more."""


LISTING = (QUERY_PRODUCT_LIST, QUERY_DEVICE, QUERY_DEVICE_DEEP)
"""The operations that list a fleet."""


_NOTHING: Listed[ListedDevice] = Listed((), None, 0, None)
"""The devices of a product that has been deleted since its name was listed."""


Call = Callable[[Operation, Mapping[str, str]], Awaitable[Sent[Answer]]]


async def list_part(
    asked: AskedAccount,
    listing: Listing,
    source: FleetSource,
    out: Path,
    *,
    stop: Stop,
    most: int | None = None,
    aside: bool = False,
) -> ListedFleet | None:
    """Lists an account's fleet, or the first of it, into a file like ``fleet.parquet``; None if it was ended before.

    Args:
        asked: the account.
        listing: its journal, open.
        source: which devices are wanted.
        out: the file.
        stop: a wish to end early.
        most: so many devices are enough.
        aside: whether the account's devices can be asked about without it, see ``AskedAccount.call_aside``.

    Raises:
        AccountStoppedError: the account is refused, was never reached, or may not list its fleet.
        RunNotWritableError: the journal or the file cannot be written.
    """
    enough = most
    while True:
        await list_fleet(asked, listing, stop=stop, enough=enough, aside=aside)
        if stop.reason is not None and not listing.over:
            return None
        write = partial(write_listed, listing.path, out, asked.name, source, limit=most)
        found = await anyio.to_thread.run_sync(write)
        if most is None or found.devices >= most or listing.over:
            return found
        # Some came twice, or are not wanted: then more have to come.
        enough = listing.rows + max(most - found.devices, listing.rows if found.excluded else 0)


async def list_fleet(
    asked: AskedAccount, listing: Listing, *, stop: Stop, enough: int | None = None, aside: bool = False
) -> None:
    """Lists what is left of an account's fleet; a product that cannot be listed is noted, and the others go on.

    Args:
        asked: the account.
        listing: its journal, open.
        stop: a wish to end early.
        enough: ends once so many devices have come.
        aside: as above.

    Raises:
        AccountStoppedError: the account is refused, was never reached, or may not list its fleet.
        RunNotWritableError: the journal cannot be written.
    """

    def over() -> bool:
        return stop.reason is not None or (enough is not None and listing.rows >= enough)

    crowd, workers = _Crowd(asked, asked.call_aside if aside else asked.call), asked.workers
    if enough is not None:
        workers = max(1, min(workers, (enough - listing.rows) // DEVICES_A_PAGE))
    try:
        while not listing.told and not over():
            await _take_products(asked, listing, asked.call_aside if listing.named else crowd.call)
        list_one = partial(_list_product, asked, listing, over, crowd)
        await fan_out(iter(listing.left()), list_one, _written, at_once=workers, stop=stop)
        if not over() and any(each.shrunk for each in listing.products.values()):
            await _count_again(asked, listing)
    except AccountStoppedError as error:
        raise AccountStoppedError(asked.name, f"its fleet cannot be listed: {error.sentence}") from error


class _Crowd:
    """How many products are listed side by side: as many as the quota needs at the latency, and no more.

    What is listed quickly changes less meanwhile, so that fewer pages are read again. ``call`` asks.
    """

    def __init__(self, asked: AskedAccount, call: Call) -> None:
        self._asked, self.call = asked, call
        self.limiter = anyio.CapacityLimiter(asked.workers)
        self.adjust()

    def adjust(self) -> None:
        """Follows the latency."""
        self.limiter.total_tokens = max(1, self._asked.needed_for(QUERY_DEVICE, QUERY_PRODUCT_LIST))


async def _written(_: None) -> None:
    """Pages are written as they come."""


async def _take_products(asked: AskedAccount, listing: Listing, call: Call) -> None:
    """The next page of the list of products; where they are named, a key that may not list them does without."""
    place = listing.pager.place
    parameters = {"CurrentPage": str(place.page), "PageSize": str(PRODUCTS_A_PAGE)}
    page = await _page(call, QUERY_PRODUCT_LIST, parameters, place, products_of)
    if not isinstance(page, PlatformError):
        listing.take_products(page)
    elif listing.named:
        log.warning("products are not listed, so those that are named are taken", account=asked.name, reason=str(page))
        listing.no_products(page.code, page.message)
    else:
        raise AccountStoppedError(asked.name, str(page))


async def _count_again(asked: AskedAccount, listing: Listing) -> None:
    """Asks for the products' own numbers once more: what was removed while devices were listed is no gap."""
    again, seen = Pager(PRODUCTS_A_PAGE, token_from=None, most=MOST), set[str]()
    while again.phase == "forward":
        parameters = {"CurrentPage": str(again.place.page), "PageSize": str(PRODUCTS_A_PAGE)}
        page = await _page(asked.call_aside, QUERY_PRODUCT_LIST, parameters, again.place, products_of)
        if isinstance(page, PlatformError):
            return
        listing.count_again(page)
        seen.update(each.product_key for each in page.items)
        again.take(Listed(tuple(each.product_key for each in page.items), None, page.total, None))
    if again.doubt is None and len(seen) >= (again.least or 0):
        listing.count_rest(seen)


async def _list_product(
    asked: AskedAccount, listing: Listing, over: Callable[[], bool], crowd: _Crowd, product: ProductListing
) -> None:
    def begun_deep() -> bool:
        return (product.pager.place.page - 1) * DEVICES_A_PAGE >= DEEP

    async def read_while(goes_on: Callable[[], bool]) -> None:
        while product.pager.phase != "ended" and product.failure is None and not over() and goes_on():
            await _take_devices(asked, listing, product, crowd.call)
            crowd.adjust()

    async with crowd.limiter:
        await read_while(lambda: not begun_deep())
    await read_while(lambda: True)  # deep in a product its own quota lasts long, and others may go on meanwhile


async def _take_devices(asked: AskedAccount, listing: Listing, product: ProductListing, call: Call) -> None:
    """The next page of a product's devices."""
    key, place = product.product.product_key, product.pager.place
    parameters = {"ProductKey": key, "CurrentPage": str(place.page), "PageSize": str(DEVICES_A_PAGE)}
    # The page number too: the documents do not say whether a token makes it needless.
    parameters |= {} if place.token is None else {"NextToken": place.token}
    operation = QUERY_DEVICE if (place.page - 1) * DEVICES_A_PAGE < DEEP else QUERY_DEVICE_DEEP
    page = await _page(call, operation, parameters, place, partial(devices_of, product_key=key))
    if isinstance(page, NotFoundError) and not listing.named:
        page = _NOTHING
    if not isinstance(page, PlatformError):
        listing.take_devices(key, page)
    elif isinstance(page, RefusedRequestError) and place.token is not None and product.refusals < REFUSALS:
        listing.refuse_token(key)
    else:
        log.warning("a product cannot be listed", account=asked.name, product_key=key, reason=str(page))
        listing.fail(key, page.code, page.message)


async def _page(
    call: Call, operation: Operation, parameters: Mapping[str, str], place: Place, read: Callable[[Answer], Listed[T]]
) -> Listed[T] | PlatformError:
    """A page, or why there is none. One that was asked for by token may have any number."""
    told: int | None = None
    for _ in range(READINGS):
        sent = await call(operation, parameters)
        if isinstance(sent.result, PlatformError):
            return sent.result
        page = read(sent.result)
        told = page.number
        if place.token is not None or told in {None, place.page}:
            return page
    return InconsistentPagesError(f"asked for page {place.page}, got page {told}")


async def ask_defined_modules(
    asked: AskedAccount,
    product_keys: Iterable[str],
    define: Callable[[str, tuple[str, ...]], None],
    *,
    workers: int,
    stop: Stop,
) -> None:
    """Asks once for each product which modules it defines. What cannot be answered stays unknown, and is logged once.

    Args:
        asked: the account.
        product_keys: of which products.
        define: told the modules of a product.
        workers: requests in flight at most.
        stop: a wish to end early.
    """
    unknown: list[str] = []

    async def ask(key: str) -> None:
        sent = await asked.call_aside(LIST_OTA_MODULE_BY_PRODUCT, {"ProductKey": key})
        if isinstance(sent.result, PlatformError):
            unknown.append(str(sent.result))
        elif modules := modules_of(sent.result):  # every product has one, so an answer without any tells nothing
            define(key, modules)

    keys: Iterator[str] = iter(product_keys)
    try:
        await fan_out(keys, ask, _written, at_once=workers, stop=stop)
    except AccountStoppedError as error:  # whoever asks about devices learns it too
        unknown.append(error.sentence)
    if unknown:
        log.warning(
            "which modules products define is not known", account=asked.name, products=len(unknown), reason=unknown[0]
        )
