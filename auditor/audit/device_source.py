"""Devices of each account in a run: from a fleet file, or discovered on the platform while other accounts are queried.

An account is queried as soon as its own devices are known. The run's ``fleet.parquet`` grows by one account at a time:
the file is replaced first, then the manifest records it. Journals are removed once all accounts are complete. A resume
continues an interrupted discovery from its journal, or adds its devices once more.
"""

import hashlib
import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import anyio

from auditor.bulk.index_journal import IndexJournal
from auditor.bulk.index_reader import IndexRefusedError, discover_by_index
from auditor.bulk.index_results import index_results_path
from auditor.concurrency import StopToken, run_in_thread
from auditor.config.settings import FleetSource, Settings
from auditor.engine.account_session import AccountSession
from auditor.engine.progress import DiscoveryProgress
from auditor.engine.run_state import RunState
from auditor.errors import AccountStoppedError, RunFolderError, RunNotWritableError
from auditor.fleet.crawler import discover_account, fetch_product_modules
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.gaps import discovery_info, discovery_progress, product_infos, retry_gaps
from auditor.fleet.materialize import MaterializedFleet
from auditor.fleet.table import devices_by_product, devices_by_status, sha256_of, write_extended_fleet
from auditor.log import log
from auditor.planning.capacity import plan_fleet
from auditor.runs.folder import FLEET
from auditor.runs.locking import PreparedRun
from auditor.runs.manifest import DiscoveryInfo
from auditor.runs.products import ProductInfo, ProductsFile
from auditor.runs.recovery import REMAINING, write_remaining_devices
from auditor.storage.files import put_in_place, translate_os_errors
from auditor.tracing import span

DISCOVERY_FOLDER = ".discovery"
"""Folder in the run folder that holds discovered devices until they are in the fleet."""

MODULES_CONCURRENCY = 8
"""Products whose modules are fetched concurrently with devices: enough for their quota, and few beside the devices."""


class AccountDevices(NamedTuple):
    """A file of an account's devices to query; ``retry_error``: why gaps of its discovery could not be retried."""

    path: Path
    retry_error: AccountStoppedError | None = None


class DeviceSource:
    """Provides the devices of each account, and lets ``state`` record the growing fleet.

    ``fleet_lock`` is held while the fleet's file is replaced, and by those who read it meanwhile. Methods raise
    RunNotWritableError if the run folder cannot be written.
    """

    def __init__(self, settings: Settings, prepared: PreparedRun, state: RunState) -> None:
        self._settings, self._prepared, self._state = settings, prepared, state
        self._folder, self._work = prepared.folder, prepared.folder / DISCOVERY_FOLDER
        self._fleet = prepared.manifest.fleet
        self._discovery = {each.account: each for each in prepared.manifest.discovery}
        self._file_duplicates = self._fleet.duplicates - sum(each.duplicates for each in self._discovery.values())
        self._accounts = {account.name: account for account in settings.account}
        self._journals: dict[str, DiscoveryJournal] = {}
        self._pinned = False
        self.fleet_lock, self._limit_lock = anyio.Lock(), anyio.Lock()

    @cached_property
    def _products(self) -> ProductsFile:
        """The run's products, read when they are first needed, so that an unreadable file ends the audit."""
        return ProductsFile(self._folder)

    async def open_account(self, session: AccountSession, *, stop: StopToken) -> AccountDevices | None:
        """Return an account's devices that are to be queried; None if the end was requested during their discovery.

        Raises:
            AccountStoppedError: the account is denied, was never reached, or may not list its devices.
            RunNotWritableError: the run folder cannot be written.
        """
        discovery, source = self._discovery.get(session.name), self._accounts[session.name].fleet
        if discovery is None or source is None or discovery.state == "complete":
            return AccountDevices(await self._pinned_devices())
        with span("discovery", {"auditor.account.name": session.name}):
            if self._fleet.limit is None:
                return await self._discover(session, discovery, source, stop)
            async with self._limit_lock:  # one account after the other: the first accounts use up the limit first
                return await self._discover(session, discovery, source, stop)

    async def _pinned_devices(self) -> Path:
        """Return a file of the devices that were in the fleet before, which no discovery of an account replaces.

        A query that reads a file while it is replaced finds other rows, or none, at the positions that it has.
        """
        devices = self._prepared.devices
        if devices != self._folder / FLEET or all(each.state == "complete" for each in self._discovery.values()):
            return devices
        pinned = self._work / "fleet-before.parquet"
        async with self.fleet_lock:
            if not self._pinned:
                with translate_os_errors(f"{pinned}: cannot be written"):
                    self._work.mkdir(exist_ok=True)
                    await run_in_thread(shutil.copyfile, devices, pinned)
                self._pinned = True
        return pinned

    async def _discover_by_index(
        self, session: AccountSession, source: FleetSource, out: Path, limit: int | None, stop: StopToken
    ) -> tuple[IndexJournal, MaterializedFleet | None] | None:
        """Read an account by the platform's search index; return None if that is refused, now or before.

        A resume tries again what failed for a reason that may pass.
        """
        path, refused = self._path(session.name, ".index.jsonl"), self._path(session.name, ".refused")
        if refused.exists():
            return None
        results = index_results_path(self._folder, session.name)
        try:
            with IndexJournal(path, source) as journal:
                self._journals[session.name] = journal
                return journal, await discover_by_index(
                    session, journal, source, out, results, stop=stop, max_devices=limit
                )
        except IndexRefusedError as error:
            log.warning("index_unavailable", account=session.name, reason=str(error))
            if error.is_temporary:
                return None
        with translate_os_errors(f"{refused}: cannot be written"):
            refused.touch()
            path.unlink(missing_ok=True)
        return None

    async def _discover(
        self, session: AccountSession, discovery: DiscoveryInfo, source: FleetSource, stop: StopToken
    ) -> AccountDevices | None:
        name, retry = session.name, discovery.state == "partial"
        try:
            self._work.mkdir(exist_ok=True)
        except OSError as error:
            raise RunNotWritableError(f"{self._work}: cannot be written: {error.strerror}") from error
        out, limit = self._path(name, ".parquet"), await run_in_thread(self._limit_for, name)
        if self._accounts[name].read != "device" and not retry:
            indexed = await self._discover_by_index(session, source, out, limit, stop)
            if indexed is not None:
                rows, listed = indexed
                return None if listed is None else await self._add_discovery(session, rows, listed, out, limit)
        with DiscoveryJournal(self._path(name, ".jsonl"), source) as journal:
            self._journals[name] = journal
            try:
                if retry:
                    await run_in_thread(retry_gaps, journal, name, source, out)
                found = await discover_account(
                    session, journal, source, out, stop=stop, max_devices=limit, optional=retry
                )
            except AccountStoppedError as error:
                if not retry:
                    raise
                return AccountDevices(await self._write_remaining(name), error)
            if found is None:
                return None
            return await self._add_discovery(session, journal, found, out, limit)

    async def _add_discovery(
        self, session: AccountSession, journal: DiscoveryJournal, found: MaterializedFleet, out: Path, limit: int | None
    ) -> AccountDevices:
        """Add what was discovered to the fleet; return the account's devices that are to be queried."""
        name = session.name
        if not found.devices and limit != 0:
            log.warning("fleet_empty", account=name, products=len(journal.products))
        cut = limit is not None and found.devices >= limit
        before = self._prepared.discovery_requests(name)
        discovery = discovery_info(session, journal, found, before, limited=cut)
        await self._add_to_fleet(discovery, product_infos(name, journal, found), out, limit)
        return AccountDevices(await self._write_remaining(name) if self._prepared.resumed else out)

    async def _write_remaining(self, account: str) -> Path:
        """Write a file of an account's devices that are in the fleet and have no answer, and return its path."""
        remaining = self._path(account, REMAINING)
        try:
            async with self.fleet_lock:
                await run_in_thread(write_remaining_devices, self._folder, remaining, account=account)
        except RunFolderError as error:
            raise AccountStoppedError(account, str(error), reason_code=error.reason_code) from error
        return remaining

    async def _add_to_fleet(
        self, discovery: DiscoveryInfo, products: list[ProductInfo], out: Path, limit: int | None
    ) -> None:
        """Add an account's devices to the fleet, then record that in the manifest."""
        name, fleet, new = discovery.account, self._folder / FLEET, self._work / FLEET
        async with self.fleet_lock:
            try:
                total = await run_in_thread(
                    write_extended_fleet, fleet, out, name, list(self._accounts), new, max_devices=limit
                )
                await run_in_thread(put_in_place, new, fleet)
                sha256 = await run_in_thread(sha256_of, fleet)
            except OSError as error:
                raise RunNotWritableError(f"{self._folder}: cannot be written: {error.strerror}") from error
            # Counted in the fleet: devices of an earlier discovery may be in it that are not listed any more.
            statuses = await run_in_thread(devices_by_status, fleet, name)
            self._discovery[name] = replace(discovery, devices=sum(statuses.values()), statuses=statuses)
            self._products.replace_products(name, products)
            await run_in_thread(self._products.write)
            duplicates = self._file_duplicates + sum(each.duplicates for each in self._discovery.values())
            self._fleet = replace(self._fleet, devices=total, duplicates=duplicates, sha256=sha256)
            self._state.record_fleet(self._fleet, tuple(self._discovery.values()))
            plan = await run_in_thread(plan_fleet, self._settings, fleet, self._folder.parent)
            self._state.record_plan(plan.planned)
            await self._state.persist()

    def includes_never_activated(self, account: str) -> bool:
        """Return whether an account's devices are queried even if they were never activated."""
        return not self._accounts[account].skips_never_activated

    async def fetch_modules(self, session: AccountSession, stop: StopToken) -> None:
        """Fetch which modules an account's products define, if that is configured."""
        account = self._accounts[session.name]
        if not self._settings.fetches_modules_of(account):
            return
        if not account.uses_discovery:
            async with self.fleet_lock:
                counts = await run_in_thread(devices_by_product, self._folder / FLEET, session.name)
            products = (ProductInfo(session.name, key, None, None, devices) for key, devices in counts.items())
            self._products.replace_products(session.name, products)
        set_modules = partial(self._products.set_modules, session.name)
        product_keys = self._products.products_without_modules(session.name)
        await fetch_product_modules(session, product_keys, set_modules, workers=MODULES_CONCURRENCY, stop=stop)

    async def finish(self) -> None:
        """Write what is known about products, and remove files whose devices are in the fleet."""
        await run_in_thread(self._products.finish)
        if all(each.state == "complete" for each in self._discovery.values()):
            shutil.rmtree(self._work, ignore_errors=True)
        for path in self._work.glob("*.parquet"):
            path.unlink(missing_ok=True)

    @property
    def progress(self) -> dict[str, DiscoveryProgress]:
        """Progress of the accounts whose discovery has not finished, by name."""
        pending = [name for name, each in self._discovery.items() if each.state == "pending"]
        return {name: discovery_progress(self._journals.get(name)) for name in pending}

    def _path(self, account: str, suffix: str) -> Path:
        """Return the path of a file for an account, whatever characters its name has."""
        return self._work / (hashlib.sha256(account.encode()).hexdigest()[:16] + suffix)

    def _limit_for(self, account: str) -> int | None:
        """Return how many devices an account may have, including those that it already has in the fleet."""
        if self._fleet.limit is None:
            return None
        own = sum(devices_by_status(self._folder / FLEET, account).values())
        return max(0, self._fleet.limit - self._fleet.devices + own)
