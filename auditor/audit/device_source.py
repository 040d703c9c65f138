"""The fleets of a run: those that are known at the start, and those that the platform lists while others are audited.

An account is asked about its devices as soon as its own fleet is listed. The run's ``fleet.parquet`` grows by one
account at a time: the file is replaced first, then the manifest says so; the journals go once all is listed. Whatever
is killed in between is found again by a resume, which lists on from the journal, or puts its devices in once more.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import structlog

from auditor.config.settings import Settings
from auditor.engine.account_session import AskedAccount
from auditor.engine.progress import ListingProgress
from auditor.engine.worker_pool import Stop
from auditor.errors import AccountStoppedError, RunFolderError, RunNotWritableError
from auditor.fleet.crawler import ask_defined_modules, list_part
from auditor.fleet.discovery_journal import Listing
from auditor.fleet.gaps import facts_of, list_gaps_anew, products_of, progress_of
from auditor.fleet.materialize import ListedFleet
from auditor.fleet.table import devices_by_product, devices_by_status, sha256_of, write_grown
from auditor.runs.folder import FLEET
from auditor.runs.locking import Begun
from auditor.runs.manifest import FleetFacts, ListingFacts
from auditor.runs.products import ProductFacts, ProductsFile
from auditor.runs.recovery import write_pending
from auditor.storage.files import put_in_place

log = structlog.get_logger()


LISTINGS = ".listing"
"""A folder in the run folder for what is listed, until it is in the fleet."""


MODULES_AT_ONCE = 8
"""Products that are asked about at a time while devices are: enough for their quota, and few beside those."""


Grown = Callable[[FleetFacts, tuple[ListingFacts, ...]], Awaitable[None]]


class Fleets:
    """Finds out whom to ask.

    Args:
        settings: of the audit.
        begun: the run folder.
        grown: told when the fleet has grown; it writes that down before it returns.

    Attributes:
        refused: why an account's gaps could not be listed once more; what is in the fleet is asked about all the same.
    """

    def __init__(self, settings: Settings, begun: Begun, grown: Grown) -> None:
        self._settings, self._begun, self._grown = settings, begun, grown
        self._folder, self._work = begun.folder, begun.folder / LISTINGS
        self._fleet, self._facts = begun.manifest.fleet, {each.account: each for each in begun.manifest.listings}
        self._of_files = self._fleet.duplicates - sum(each.repeats for each in self._facts.values())
        self._accounts = {account.name: account for account in settings.account}
        self._listings: dict[str, Listing] = {}
        self.refused: dict[str, AccountStoppedError] = {}
        self._growing, self._in_turn = anyio.Lock(), anyio.Lock()
        self._products = ProductsFile(self._folder)
        if self._facts:
            try:
                self._work.mkdir(exist_ok=True)
            except OSError as error:
                raise RunNotWritableError(f"{self._work} cannot be written: {error.strerror}") from error

    async def devices_of(self, asked: AskedAccount, *, stop: Stop) -> Path | None:
        """A file of the devices that an account is to be asked about; None if the end was wished before it was listed.

        Raises:
            AccountStoppedError: the account is refused, was never reached, or may not list its fleet.
            RunNotWritableError: the run folder cannot be written.
        """
        facts, source = self._facts.get(asked.name), self._accounts[asked.name].fleet
        if facts is None or source is None or facts.state == "complete":
            return self._begun.devices
        # Of a part of the fleets the first accounts come first.
        async with contextlib.nullcontext() if self._fleet.limit is None else self._in_turn:
            part, most = self._path(asked.name, ".parquet"), self._most(asked.name)
            again = facts.state == "partial"
            with Listing(self._path(asked.name, ".jsonl"), source) as listing:
                self._listings[asked.name] = listing
                try:
                    if again:
                        await anyio.to_thread.run_sync(list_gaps_anew, listing, asked.name, source, part)
                    found = await list_part(asked, listing, source, part, stop=stop, most=most, aside=again)
                except AccountStoppedError as error:
                    if not again:
                        raise
                    self.refused[asked.name] = error
                    return await self._left(asked.name)
            if found is None:
                return None
            if not found.devices and most != 0:
                log.warning("no device is listed that is wanted", account=asked.name, products=len(listing.products))
            cut = most is not None and found.devices >= most
            before = self._begun.requests_of(asked.name)
            facts = facts_of(asked, listing, found, before, cut=cut)
            await self._grow(facts, listing, found, part, most)
            return await self._left(asked.name) if self._begun.resumed else part

    async def _left(self, account: str) -> Path:
        """A file of the devices of an account that are in the fleet and have no answer."""
        left = self._path(account, ".left.parquet")
        try:
            await anyio.to_thread.run_sync(partial(write_pending, self._folder, left, account=account))
        except RunFolderError as error:
            raise AccountStoppedError(account, str(error)) from error
        return left

    async def _grow(
        self, facts: ListingFacts, listing: Listing, found: ListedFleet, part: Path, most: int | None
    ) -> None:
        """Puts an account's devices into the fleet."""
        run, name, new = anyio.to_thread.run_sync, facts.account, self._work / FLEET
        async with self._growing:
            try:
                grown = partial(write_grown, self._folder / FLEET, part, name, list(self._accounts), new, most=most)
                devices = await run(grown)
                await run(put_in_place, new, self._folder / FLEET)
                sha256 = await run(sha256_of, self._folder / FLEET)
            except OSError as error:
                raise RunNotWritableError(f"{self._folder} cannot be written: {error.strerror}") from error
            # Of what is in the fleet: some may have been there before and are not listed any more.
            statuses = await run(devices_by_status, self._folder / FLEET, name)
            self._facts[name] = replace(facts, devices=sum(statuses.values()), statuses=statuses)
            self._products.take(name, products_of(name, listing, found))
            await run(self._products.write)
            repeats = sum(each.repeats for each in self._facts.values())
            self._fleet = replace(self._fleet, devices=devices, duplicates=self._of_files + repeats, sha256=sha256)
            await self._grown(self._fleet, tuple(self._facts.values()))

    def asks_all(self, account: str) -> bool:
        """Whether devices of an account are asked about that were never activated, too."""
        return not self._accounts[account].skips

    async def ask_modules(self, asked: AskedAccount, stop: Stop) -> None:
        """Asks which modules the products of an account's fleet define, if that is wanted."""
        account = self._accounts[asked.name]
        if account.expected_modules is False or not (account.listed or account.expected_modules):
            return
        if not account.listed:
            counted = await anyio.to_thread.run_sync(devices_by_product, self._folder / FLEET, asked.name)
            rows = (ProductFacts(asked.name, key, None, None, devices) for key, devices in counted.items())
            self._products.take(asked.name, rows)
        define = partial(self._products.define, asked.name)
        keys = self._products.undefined(asked.name)
        await ask_defined_modules(asked, keys, define, workers=MODULES_AT_ONCE, stop=stop)

    async def finish(self) -> None:
        """Writes what was learned of products, and removes what is in the fleet by now.

        Raises:
            RunNotWritableError: the run folder cannot be written.
        """
        await anyio.to_thread.run_sync(self._products.write)
        if all(each.state == "complete" for each in self._facts.values()):
            shutil.rmtree(self._work, ignore_errors=True)
        for path in self._work.glob("*.parquet"):
            path.unlink(missing_ok=True)

    @property
    def progress(self) -> dict[str, ListingProgress]:
        """How far listing is, of each account whose fleet is not known yet."""
        under_way = [name for name, each in self._facts.items() if each.state == "pending"]
        return {name: progress_of(self._listings.get(name)) for name in under_way}

    def _path(self, account: str, ending: str) -> Path:
        """A file for an account, whatever is in its name."""
        return self._work / (hashlib.sha256(account.encode()).hexdigest()[:16] + ending)

    def _most(self, account: str) -> int | None:
        """How many devices of an account are wanted at most; those count that are in the file, whatever is told."""
        if self._fleet.limit is None:
            return None
        own = sum(devices_by_status(self._folder / FLEET, account).values())
        return max(0, self._fleet.limit - self._fleet.devices + own)
