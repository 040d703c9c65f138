"""The accounts' fleets as the platform lists them, without an audit: into files that last until they are not needed."""

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
import structlog

from auditor.config.serialization import table_of
from auditor.config.settings import Account, FleetSource, Settings
from auditor.engine.account_session import AskedAccount, open_account, open_side_by_side, read_keys
from auditor.engine.allocation import workers_of
from auditor.engine.limiters import try_budget
from auditor.engine.progress import INTERRUPTED, Progress, Watch, together
from auditor.engine.worker_pool import Stop
from auditor.errors import RunFolderError, RunNotWritableError, StoppedError, UsageError
from auditor.fleet.crawler import list_part
from auditor.fleet.discovery_journal import Listing
from auditor.fleet.gaps import facts_of, gaps_of, list_gaps_anew, products_of, progress_of
from auditor.fleet.materialize import write_listed
from auditor.runs.locking import Hold, is_held
from auditor.runs.manifest import DeviceCounts, ListingFacts, RequestCounts
from auditor.runs.products import ProductFacts
from auditor.storage.files import replace_file

log = structlog.get_logger()


WATCH_SECONDS = 0.5
"""How often a watcher is told."""


_WHAT = "listing.json"
"""What is listed in a folder: the settings that say so."""


EVERYTHING = FleetSource(products="all")
"""What is listed of an account whose fleet is a file, or that has none."""


@dataclass(frozen=True, slots=True)
class EnumeratedAccount:
    """An account's fleet as the platform lists it.

    Attributes:
        facts: how that went; ``pending``: it was not listed to its end, and there are no files.
        products: that are wanted.
        wanted: its devices, a file like ``fleet.parquet``.
        listed: those too that the settings leave out.
        unsure: products of which devices are missing in the list.
        everything: whether every product of the account was asked for, as far as is known.
    """

    facts: ListingFacts
    products: tuple[ProductFacts, ...] = ()
    wanted: Path | None = None
    listed: Path | None = None
    unsure: frozenset[str] = frozenset()
    everything: bool = True


@dataclass(frozen=True, slots=True)
class Enumeration:
    """What listing fleets came to.

    Attributes:
        accounts: in the settings' order.
        errors: why accounts were stopped.
        exit_code: 0 done; 1 a product could not be listed; 3 an account was stopped; 130 interrupted.
    """

    accounts: tuple[EnumeratedAccount, ...]
    errors: tuple[StoppedError, ...] = ()
    exit_code: int = 0


@dataclass(slots=True)
class _State:
    """What is under way, and what has come of it."""

    work: Path
    stop: Stop
    again: bool
    listings: dict[str, Listing] = field(default_factory=dict)
    found: dict[str, EnumeratedAccount] = field(default_factory=dict)
    errors: list[StoppedError] = field(default_factory=list)


async def enumerate_fleets(
    settings: Settings, work: Path, *, resume: bool = False, watch: Watch | None = None, stop: Stop | None = None
) -> Enumeration:
    """Lists the devices of every account; an account whose fleet is a file, or that has none, is listed whole.

    Args:
        settings: see ``load_settings``.
        work: a folder for what is listed, which the caller holds; see ``held``.
        resume: go on with what is there instead of beginning anew; what was listed with a gap is listed once more.
        watch: told every half second how far it is.
        stop: a wish to end early.

    Raises:
        SettingsError: a key is not there.
        UsageError: what is there was listed with other settings.
        RunNotWritableError: the folder cannot be written.
    """
    accounts = tuple(
        each if each.listed else msgspec.structs.replace(each, fleet=EVERYTHING) for each in settings.account
    )
    settings = msgspec.structs.replace(settings, account=accounts)
    keys = await anyio.to_thread.run_sync(read_keys, settings, abandon_on_cancel=True)
    await try_budget(settings, keys[0].budget)
    state = _State(work, stop or Stop(), resume)
    _begin(work, settings, resume=resume)
    async with AsyncExitStack() as stack:
        parts = zip(accounts, keys, workers_of(settings), strict=True)
        asked = await open_side_by_side(stack, (open_account(settings, *each) for each in parts))
        await _list_all(state, list(zip(accounts, asked, strict=True)), watch)
    found = tuple(state.found.get(each.name, EnumeratedAccount(ListingFacts(each.name))) for each in accounts)
    return Enumeration(found, tuple(state.errors), _exit_code(found, state))


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Makes a folder for what is listed, and holds it while that is listed and read.

    Raises:
        RunFolderError: another process lists into it.
        RunNotWritableError: it cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        hold = Hold(work)
    except OSError as error:
        raise RunNotWritableError(f"{work} cannot be written: {error.strerror}") from error
    except RunFolderError:
        if not is_held(work):
            raise
        raise RunFolderError(f"{work}: another process is listing this fleet; wait for it to end") from None
    with hold:
        try:
            yield
        finally:
            with suppress(OSError):  # nothing was begun
                work.rmdir()


def begun_at(work: Path) -> float | None:
    """When the listing began that a folder holds, in seconds since 1970; None: it holds none."""
    try:
        return (work / _WHAT).stat().st_mtime
    except OSError:
        return None


def _begin(work: Path, settings: Settings, *, resume: bool) -> None:
    """Empties the folder, or sees that what is there can be gone on with."""
    what = {"account": [_asked(each) for each in table_of(settings)["account"]]}
    kept = work / _WHAT
    if resume and kept.exists():
        if kept.read_bytes() != orjson.dumps(what):
            raise UsageError(f"{work}: was listed with other settings; leave out --resume to begin anew")
        return
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    replace_file(kept, orjson.dumps(what))


def _asked(account: dict[str, Any]) -> dict[str, Any]:
    return {key: account.get(key) for key in ("name", "endpoint", "dialect", "region_id", "instance_id", "fleet")}


async def _list_all(state: _State, accounts: list[tuple[Account, AskedAccount]], watch: Watch | None) -> None:
    async def list_one(number: int, account: Account, asked: AskedAccount) -> None:
        try:
            await _list_account(state, state.work / str(number), account, asked)
        except StoppedError as error:
            state.errors.append(error)
            log.error("stopped", account=account.name, reason=str(error))  # noqa: TRY400  for people
            if isinstance(error, RunNotWritableError):
                state.stop.wish(str(error))

    async with anyio.create_task_group() as together_it:
        if watch is not None:
            together_it.start_soon(_tell, state, [asked for _, asked in accounts], watch)
        async with anyio.create_task_group() as listing:
            for number, (account, asked) in enumerate(accounts):
                listing.start_soon(list_one, number, account, asked)
        together_it.cancel_scope.cancel()


async def _list_account(state: _State, place: Path, account: Account, asked: AskedAccount) -> None:
    source = account.fleet or EVERYTHING
    wanted, listed = place.with_suffix(".parquet"), place.with_suffix(".all.parquet")
    run = anyio.to_thread.run_sync
    with Listing(place.with_suffix(".jsonl"), source) as listing:
        state.listings[account.name] = listing
        if state.again and listing.pages:
            await run(list_gaps_anew, listing, account.name, source, wanted)
        found = await list_part(asked, listing, source, wanted, stop=state.stop)
    if found is None:
        return
    if source.picks:
        await run(partial(write_listed, listing.path, listed, account.name, source, wanted=False))
    gaps = gaps_of(listing, found)
    every = source.products == "all" and not (source.include.product_key or source.exclude.product_key)
    state.found[account.name] = EnumeratedAccount(
        facts_of(asked, listing, found, RequestCounts()),
        tuple(products_of(account.name, listing, found)),
        wanted,
        listed if source.picks else wanted,
        frozenset(gap.product_key for gap in gaps if gap.product_key is not None),
        everything=every and all(gap.product_key is not None for gap in gaps),
    )


async def _tell(state: _State, accounts: list[AskedAccount], watch: Watch) -> None:
    began = anyio.current_time()
    while True:
        listings = {name: progress_of(each) for name, each in state.listings.items()}
        progress = Progress(
            folder=state.work,
            fleet=0,
            devices=DeviceCounts(),
            requests=RequestCounts(),
            in_flight=0,
            per_second=None,
            elapsed=anyio.current_time() - began,
            trouble=next((said for asked in accounts if (said := asked.trouble) is not None), None),
            accounts=tuple(replace(asked.progress, listing=listings.get(asked.name)) for asked in accounts),
            listing=together(listings.values()),
        )
        try:
            watch(progress)
        except Exception as error:  # noqa: BLE001  whatever it is, a listing does not end for it
            log.warning("the watcher failed and is not told again", error=repr(error))
            return
        await anyio.sleep(WATCH_SECONDS)


def _exit_code(found: tuple[EnumeratedAccount, ...], state: _State) -> int:
    if state.errors:
        return StoppedError.exit_code
    states = {each.facts.state for each in found}
    if "pending" in states:
        return INTERRUPTED
    return int("partial" in states)
