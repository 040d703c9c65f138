"""Discovery of an account's devices and their versions by the platform's search index, 50 devices a call.

The devices of a product are read in the order of their creation. Each page begins after a time, not after a number of
rows: so the window of 10,000 rows does not matter, and a device that is removed meanwhile moves no other one. A page
may end among devices that were created at one time. So the next page begins before these, and they are read again. If
a whole page was created at one time, these devices are read by their names' beginnings instead.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from auditor.bulk.counting import request_count
from auditor.bulk.index_journal import IndexJournal, IndexPosition, TieFrame
from auditor.bulk.index_results import write_index_results
from auditor.bulk.statements import count_statement, page_statement
from auditor.client.operations import MAX_NAME_LENGTH, QUERY_DEVICE_BY_SQL
from auditor.client.parsers import parse_device_rows
from auditor.concurrency import StopToken, run_in_thread
from auditor.config.settings import FleetSource
from auditor.engine.account_session import AccountSession
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import (
    AuditorError,
    InconsistentResponseError,
    OperationUnavailableError,
    PlatformError,
    ThrottledError,
    TransientError,
    UsageError,
)
from auditor.fleet.crawler import enough_rows, read_consistently, read_products
from auditor.fleet.discovery_journal import ProductDiscovery
from auditor.fleet.materialize import MaterializedFleet, materialize
from auditor.log import log
from auditor.models import IndexedDevice, ListPage

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_@.:"
"""Characters of device names (Alibaba's pages). An empty text is for a name that is complete."""

_SIZE = QUERY_DEVICE_BY_SQL.page_size


class IndexRefusedError(AuditorError):
    """The index cannot be used for this account; the text says why. ``is_temporary``: another attempt may succeed."""

    def __init__(self, sentence: str, cause: PlatformError | None = None) -> None:
        super().__init__(sentence)
        self.is_temporary = isinstance(cause, TransientError | ThrottledError | OperationUnavailableError)


async def discover_by_index(
    session: AccountSession,
    journal: IndexJournal,
    source: FleetSource,
    out: Path,
    results: Path,
    *,
    stop: StopToken,
    max_devices: int | None = None,
) -> MaterializedFleet | None:
    """Read an account's devices, up to ``max_devices``, and write them to ``out`` like ``fleet.parquet``.

    What they run is written to ``results``. Return what was written; None: the end was requested first.

    Raises:
        IndexRefusedError: the platform does not answer, or not as documented.
        AccountStoppedError: the account is denied, was never reached, or may not list its products.
        RunNotWritableError: the journal or a file cannot be written.
    """
    enough_devices = max_devices
    write = partial(materialize, journal.path, out, session.name, source, limit=max_devices, has_attributes=True)
    while True:
        await _IndexReader(session, journal, stop, enough_devices).read()
        if stop.reason is not None and not journal.finished:
            return None
        found = await run_in_thread(write)
        if max_devices is None or found.devices >= max_devices or journal.finished:
            break
        enough_devices = enough_rows(journal, found, max_devices)
    await run_in_thread(write_index_results, journal.path, results, session.name)
    return found


class _IndexReader:
    """Reads the products of one account, several of them concurrently."""

    def __init__(
        self, session: AccountSession, journal: IndexJournal, stop: StopToken, enough_devices: int | None
    ) -> None:
        self._session, self._journal, self._stop, self._enough_devices = session, journal, stop, enough_devices
        self._has_answered = journal.rows > 0

    def _is_done(self) -> bool:
        enough = self._enough_devices is not None and self._journal.rows >= self._enough_devices
        return self._stop.reason is not None or enough

    async def read(self) -> None:
        """Read what is not read yet; a product that fails is recorded, and the others continue."""
        session, journal = self._session, self._journal
        await read_products(session, journal, self._is_done, session.call, self._stop)
        concurrency = max(1, min(session.workers, session.concurrency_for(QUERY_DEVICE_BY_SQL)))
        if not self._has_answered and (products := journal.remaining()) and not self._is_done():
            await self._read_page(products[0])  # alone: an account without an index costs one request
        remaining = iter(journal.remaining())
        await run_workers(remaining, self._read_product, discard, concurrency=concurrency, stop=self._stop)

    async def _read_product(self, product: ProductDiscovery) -> None:
        while product.pager.phase != "ended" and product.failure is None and not self._is_done():
            await self._read_page(product)

    async def _read_page(self, product: ProductDiscovery) -> None:
        key = product.product.product_key
        position = self._journal.position(key)
        try:
            if position.tied_at is None:
                await self._read_next(product, position)
            else:
                await self._read_ties(product, position, position.tied_at)
        except PlatformError as error:
            if not self._has_answered:
                raise IndexRefusedError(str(error), error) from error
            log.warning("product_not_searched", account=self._session.name, product_key=key, reason=str(error))
            self._journal.fail(key, error.code, error.message)
        except UsageError as error:  # a text of the platform that no statement can have
            raise IndexRefusedError(f"product {key}: {error}") from error
        count = product.product.device_count
        if product.pager.phase == "ended" and (count is None or product.rows < count):
            await self._count_again(key)

    async def _read_next(self, product: ProductDiscovery, position: IndexPosition) -> None:
        """Read the page after a time."""
        key = product.product.product_key
        page, read_at = await self._fetch(key, page_statement(key, after=position.after))
        times = [self._time_of(row) for row in page.items]
        if times != sorted(times) or (position.after is not None and times and times[0] <= position.after):
            raise IndexRefusedError(f"product {key}: its rows are not sorted by the time of their creation")
        read = set(position.latest)
        new = [row for row in page.items if row.device_name not in read]
        if (page.total or 0) < _SIZE:
            self._record(product, new, IndexPosition(), read_at, ended=True)
            return
        if not times:
            raise IndexRefusedError(f"product {key}: a page of {_SIZE} rows has no device")
        earlier = [time for time in times if time < times[-1]]
        if not earlier:
            position = replace(position, tied_at=times[-1], frames=[])
            await self._split(key, position, "", page.items)
            self._record(product, (), position, read_at)
            return
        latest = [row.device_name for row, time in zip(page.items, times, strict=True) if time == times[-1]]
        self._record(product, new, IndexPosition(earlier[-1], latest), read_at)

    async def _read_ties(self, product: ProductDiscovery, position: IndexPosition, tied_at: str) -> None:
        """Read devices that were created at one time, by the next beginning of their names."""
        key, frames = product.product.product_key, position.frames
        while frames and (frames[-1].remaining <= 0 or not frames[-1].characters):
            frames.pop()
        if not frames:
            self._record(product, (), IndexPosition(tied_at), self._session.platform_time())
            return
        character = frames[-1].characters.pop(0)
        name = frames[-1].prefix + character
        statement = partial(page_statement, key, at=tied_at)
        page, read_at = await self._fetch(key, statement(prefix=name) if character else statement(name=name))
        if any(self._time_of(row) != tied_at for row in page.items):
            raise IndexRefusedError(f"product {key}: rows were created at another time than requested")
        # An index that ignores case returns those of other beginnings, too.
        own = [row for row in page.items if row.device_name.startswith(name)]
        if not character:
            own = [row for row in own if row.device_name == name]
        elif (page.total or 0) >= _SIZE:
            if len(name) >= MAX_NAME_LENGTH:
                raise IndexRefusedError(f"product {key}: too many devices have one name and one time of creation")
            await self._split(key, position, name, own)
            self._record(product, (), position, read_at)
            return
        for frame in frames:
            frame.remaining -= len(own)
        read = set(position.latest)
        self._record(product, (row for row in own if row.device_name not in read), position, read_at)

    async def _split(self, key: str, position: IndexPosition, prefix: str, rows: Iterable[IndexedDevice]) -> None:
        """Divide the devices whose names begin with a prefix; characters that some have are requested first."""
        statement = count_statement(product_key=key, at=position.tied_at, prefix=prefix)
        count = await request_count(self._session, statement)
        if isinstance(count, PlatformError):
            raise IndexRefusedError(f"product {key}: its devices cannot be counted: {count}", count) from count
        found = {row.device_name[len(prefix) : len(prefix) + 1] for row in rows if row.device_name.startswith(prefix)}
        characters = sorted(CHARACTERS, key=lambda each: each not in found)
        others = sorted(found - set(CHARACTERS) - {""})
        position.frames.append(TieFrame(prefix, count, [*others, *characters, *([""] if prefix else [])]))

    def _record(
        self,
        product: ProductDiscovery,
        rows: Iterable[IndexedDevice],
        position: IndexPosition,
        read_at: float,
        *,
        ended: bool = False,
    ) -> None:
        self._has_answered = True
        self._journal.record_rows(product, rows, position, read_at=read_at, ended=ended)

    async def _fetch(self, key: str, statement: str) -> tuple[ListPage[IndexedDevice], float]:
        read_at = self._session.platform_time()
        parse: Callable[..., ListPage[IndexedDevice]] = partial(parse_device_rows, product_key=key)
        found = await read_consistently(self._session.call_optional, QUERY_DEVICE_BY_SQL, {"SQL": statement}, parse)
        if isinstance(found, PlatformError):
            raise found
        if (found.total or 0) > _SIZE:
            raise InconsistentResponseError(f"requested {_SIZE} rows, got {found.total}")
        return found, read_at

    def _time_of(self, row: IndexedDevice) -> str:
        if row.utc_create is None:
            raise IndexRefusedError(f"the time of creation of device {row.device_name} cannot be read")
        return row.utc_create

    async def _count_again(self, key: str) -> None:
        """Count a product that has fewer devices than it had, since removed ones are no gap, or that has no count."""
        try:
            count = await request_count(self._session, count_statement(product_key=key))
        except UsageError:
            return
        if not isinstance(count, PlatformError):
            self._journal.record_final_counts({key: count})
