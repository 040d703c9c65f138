"""Discovery of the accounts' fleets without an audit, into files of a folder that is kept until it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import orjson

from auditor.concurrency import (
    RunningClock,
    StopToken,
    background_tasks,
    repeat,
    run_in_abandonable_thread,
    run_in_thread,
    unwrapping_task_group,
)
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AccountSession, open_accounts
from auditor.engine.allocation import concurrency_per_account
from auditor.engine.credentials import read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.monitor import watch_clock
from auditor.engine.open_files import reserve_open_files
from auditor.engine.progress import Progress, ProgressCallback, ProgressReporter, combine_discovery_progress
from auditor.errors import AuditInterruptedError, AuditStoppedError, RunFolderError, RunNotWritableError, UsageError
from auditor.fleet.crawler import discover_account
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.gaps import discovery_info, discovery_progress, find_gaps, product_infos, retry_gaps
from auditor.fleet.materialize import materialize
from auditor.log import log
from auditor.runs.locking import LOCK, RunLock, is_locked
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo
from auditor.runs.products import ProductInfo
from auditor.runs.selection_info import RequestCounts
from auditor.storage.files import PRIVATE_FOLDER, replace_file, translate_os_errors
from auditor.storage.foreign_access import describe_foreign_access
from auditor.tracing import span

PROGRESS_SECONDS = 0.5
"""Seconds between two progress reports."""

_SETTINGS_FILE = "discovery.json"
"""File of the folder with the settings that determine what is discovered."""

ALL_PRODUCTS = FleetSource(products="all")
"""Source of an account that has a fleet file, or no fleet."""


@dataclass(frozen=True, slots=True)
class DiscoveredAccount:
    """An account's discovered devices, in files like ``fleet.parquet``: those that match the settings, and all.

    ``info`` is ``pending`` if the discovery was interrupted; then there are no files. ``products`` match the settings.
    ``incomplete_products`` have missing devices. ``all_products``: all that the account has, as far as is known.
    """

    info: DiscoveryInfo
    products: tuple[ProductInfo, ...] = ()
    matching: Path | None = None
    discovered: Path | None = None
    incomplete_products: frozenset[str] = frozenset()
    all_products: bool = True


@dataclass(frozen=True, slots=True)
class DiscoveryResult:
    """Result of a discovery: its accounts in the settings' order, and why accounts were stopped.

    ``exit_code``: 0 done; 1 a product could not be listed; 3 an account was stopped; 130 interrupted.
    """

    accounts: tuple[DiscoveredAccount, ...]
    errors: tuple[AuditStoppedError, ...] = ()
    exit_code: int = 0


@dataclass(slots=True)
class _State:
    """A running discovery, and its results so far."""

    work: Path
    stop: StopToken
    resumed: bool
    journals: dict[str, DiscoveryJournal] = field(default_factory=dict)
    found: dict[str, DiscoveredAccount] = field(default_factory=dict)
    errors: list[AuditStoppedError] = field(default_factory=list)


async def discover_fleets(
    settings: Settings,
    work: Path,
    *,
    resume: bool = False,
    on_progress: ProgressCallback | None = None,
    stop: StopToken | None = None,
) -> DiscoveryResult:
    """Discover the devices of all accounts; of an account with a fleet file, or without a fleet, all devices.

    The caller has locked the folder ``work`` with ``lock_folder``. ``resume`` continues with its content and retries
    gaps, instead of starting again. ``on_progress`` is called every half second.

    Raises:
        SettingsError: a credential is missing.
        UsageError: the content of the folder was discovered with other settings.
        RunNotWritableError: the folder cannot be written.
    """
    accounts = tuple(
        each if each.uses_discovery else msgspec.structs.replace(each, fleet=ALL_PRODUCTS) for each in settings.account
    )
    settings = msgspec.structs.replace(settings, account=accounts)
    reserve_open_files(settings)
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    await check_quota_sharing(settings, credentials[0].redis_password)
    state = _State(work, stop or StopToken(), resume)
    _prepare_folder(work, settings, resume=resume)
    async with AsyncExitStack() as stack:
        clock = RunningClock()
        sessions = await open_accounts(stack, settings, credentials, concurrency_per_account(settings), clock=clock)
        reporter, started_at = ProgressReporter(on_progress), anyio.current_time()
        report = partial(reporter.report, lambda: _progress(state, sessions, anyio.current_time() - started_at))
        report()
        tickers = partial(watch_clock, clock), partial(repeat, PROGRESS_SECONDS, report)
        await stack.enter_async_context(background_tasks(*tickers))
        async with unwrapping_task_group() as group:
            for number, (account, session) in enumerate(zip(accounts, sessions, strict=True)):
                group.start_soon(_discover, state, state.work / str(number), account, session)
    found = tuple(state.found.get(each.name, DiscoveredAccount(DiscoveryInfo(each.name))) for each in accounts)
    return DiscoveryResult(found, tuple(state.errors), _exit_code(found, state))


@contextmanager
def lock_folder(work: Path, *, group_readable: bool = False) -> Iterator[None]:
    """Create a folder for a discovery, which only its owner can enter, and lock it while it is written and read.

    A directory of runs that does not exist is created, with ``group_readable`` for the user's group as well.

    Raises:
        RunFolderError: another process writes it.
        RunNotWritableError: it cannot be written, is no folder, or another user could change or redirect it.
    """
    try:
        work.parent.mkdir(0o750 if group_readable else PRIVATE_FOLDER, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            work.mkdir(PRIVATE_FOLDER)
        _refuse_foreign_folder(work)
        lock = RunLock(work)
    except OSError as error:
        raise RunNotWritableError(f"{work}: cannot be written: {error.strerror}") from error
    except RunFolderError:
        if not is_locked(work):
            raise
        raise RunFolderError(f"{work}: another process is listing this fleet; wait for it to end") from None
    try:
        with lock:
            yield
    finally:
        with suppress(OSError):  # only an empty folder is removed
            work.rmdir()


def _refuse_foreign_folder(work: Path) -> None:
    """Raise RunNotWritableError if a path is no folder, or one that another user could change or redirect."""
    access = describe_foreign_access(work)
    if access is None and not work.is_dir():
        access = "is not a folder"
    if access is not None:
        raise RunNotWritableError(f"{work}: {access}, so no fleet is listed into it; remove it")


def discovery_started_at(work: Path) -> float | None:
    """Return when the discovery in a folder was started, in seconds since 1970; None: the folder has none."""
    try:
        return (work / _SETTINGS_FILE).stat().st_mtime
    except OSError:
        return None


def _prepare_folder(work: Path, settings: Settings, *, resume: bool) -> None:
    """Empty the folder, or check that its content can be continued."""
    keys = ("name", "endpoint", "dialect", "region_id", "instance_id", "fleet")
    accounts: list[dict[str, Any]] = settings_to_dict(settings)["account"]
    content = orjson.dumps({"account": [{key: account.get(key) for key in keys} for account in accounts]})
    path = work / _SETTINGS_FILE
    if resume and path.exists():
        if path.read_bytes() != content:
            raise UsageError(f"{work}: was listed with other settings; drop --resume to start again")
        return
    with translate_os_errors(f"{work}: cannot be emptied"):
        _empty_folder(work)
    replace_file(path, content)


def _empty_folder(work: Path) -> None:
    """Remove everything but the lock, through a descriptor: a link that replaces the folder is not followed."""
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.name, dir_fd=folder)
                elif entry.name != LOCK:
                    os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)


async def _discover(state: _State, path: Path, account: Account, session: AccountSession) -> None:
    """Discover the devices of one account; if it is stopped, the other accounts continue."""
    try:
        with span("discovery", {"auditor.account.name": session.name}):
            await _discover_devices(state, path, account.fleet or ALL_PRODUCTS, session)
    except AuditStoppedError as error:
        state.errors.append(error)
        log.error("account_stopped", account=session.name, reason=str(error))
        if isinstance(error, RunNotWritableError):
            state.stop.request(str(error))


async def _discover_devices(state: _State, path: Path, source: FleetSource, session: AccountSession) -> None:
    name = session.name
    matching, discovered = path.with_suffix(".parquet"), path.with_suffix(".all.parquet")
    with DiscoveryJournal(path.with_suffix(".jsonl"), source) as journal:
        state.journals[name] = journal
        if state.resumed and journal.pages:
            await run_in_thread(retry_gaps, journal, name, source, matching)
        found = await discover_account(session, journal, source, matching, stop=state.stop)
    if found is None:
        return
    if source.filters_devices:
        await run_in_thread(materialize, journal.path, discovered, name, source, filtered=False)
    gaps = find_gaps(journal, found)
    unfiltered = source.products == "all" and not (source.include.product_key or source.exclude.product_key)
    state.found[name] = DiscoveredAccount(
        discovery_info(session, journal, found, RequestCounts()),
        tuple(product_infos(name, journal, found)),
        matching,
        discovered if source.filters_devices else matching,
        frozenset(gap.product_key for gap in gaps if gap.product_key is not None),
        all_products=unfiltered and all(gap.product_key is not None for gap in gaps),
    )


def _progress(state: _State, sessions: list[AccountSession], elapsed: float) -> Progress:
    discovery = {name: discovery_progress(journal) for name, journal in state.journals.items()}
    return Progress(
        folder=state.work,
        fleet=0,
        devices=DeviceCounts(),
        requests=RequestCounts(),
        in_flight=0,
        target_rate=None,
        elapsed=elapsed,
        problem=next((problem for session in sessions if (problem := session.problem) is not None), None),
        accounts=tuple(replace(session.progress, discovery=discovery.get(session.name)) for session in sessions),
        discovery=combine_discovery_progress(discovery.values()),
    )


def _exit_code(found: tuple[DiscoveredAccount, ...], state: _State) -> int:
    if state.errors:
        return AuditStoppedError.exit_code
    states = {each.info.state for each in found}
    if "pending" in states:
        return AuditInterruptedError.exit_code
    return int("partial" in states)
