"""Outcomes as they come, for programs that want them in hand instead of in a folder."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from auditor.config.settings import Account, Settings
from auditor.engine.account_session import AskedAccount, open_account, open_side_by_side, read_keys
from auditor.engine.allocation import workers_of
from auditor.engine.device_reader import never_activated
from auditor.engine.worker_pool import Stop, fan_out
from auditor.errors import FleetError, StoppedError
from auditor.fleet.crawler import list_part
from auditor.fleet.discovery_journal import Listing
from auditor.fleet.snapshot import fleet_files, with_fleet, write_snapshot
from auditor.fleet.table import read_never_activated, read_snapshot
from auditor.models import Device, Outcome
from auditor.runs.folder import FLEET

WAITING = 100
"""Outcomes that wait for their reader at most; then the asking waits."""


@asynccontextmanager
async def outcomes(
    settings: Settings, devices: Iterable[Device] | None = None
) -> AsyncIterator[MemoryObjectReceiveStream[Outcome]]:
    """Asks about every device and gives each outcome as it comes, in no order; nothing is written.

        async with auditor.outcomes(settings) as stream:
            async for outcome in stream:
                ...

    Args:
        settings: see ``load_settings``.
        devices: whom to ask about, instead of the fleet in the settings; pulled as they are asked. One account only.

    Raises:
        SettingsError, FleetError: before anything is asked.
        StoppedError: from the block's end, when an account was stopped; its devices have no outcome.
    """
    keys = await anyio.to_thread.run_sync(read_keys, settings, abandon_on_cancel=True)
    if devices is not None and len(settings.account) > 1:
        raise FleetError(f"devices were given for {len(settings.account)} accounts; open a stream for each account")
    stopped: list[StoppedError] = []
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="auditor-")))
        if devices is None and (files := fleet_files(with_fleet(settings, None))):
            await anyio.to_thread.run_sync(write_snapshot, files, work / FLEET)
        parts = zip(settings.account, keys, workers_of(settings), strict=True)
        accounts = await open_side_by_side(stack, (open_account(settings, *each) for each in parts))
        send, receive = anyio.create_memory_object_stream[Outcome](WAITING)

        async def ask(account: Account, asked: AskedAccount, outlet: MemoryObjectSendStream[Outcome]) -> None:
            async with outlet:
                try:
                    source = devices if devices is not None else await _fleet(account, asked, work, outlet.send)
                    await fan_out(iter(source), asked.fetch, outlet.send, at_once=asked.workers, stop=Stop())
                except StoppedError as error:
                    stopped.append(error)

        async with anyio.create_task_group() as group, receive:
            async with send:
                for account, asked in zip(settings.account, accounts, strict=True):
                    group.start_soon(ask, account, asked, send.clone())
            try:
                yield receive
            except Exception as error:  # noqa: BLE001  raised again below, outside the group that would wrap it
                failure = error
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if stopped:
        raise stopped[0]


async def _fleet(
    account: Account, asked: AskedAccount, work: Path, send: Callable[[Outcome], Awaitable[None]]
) -> Iterator[Device]:
    """The devices to ask about; of those that the platform lists, what is known without a question is sent at once."""
    if account.fleet is None or not account.listed:
        return read_snapshot(work / FLEET, account.name)
    place = Path(mkdtemp(dir=work))
    with Listing(place / "listing.jsonl", account.fleet) as listing:
        await list_part(asked, listing, account.fleet, place / FLEET, stop=Stop())
    if account.skips:
        for device in read_never_activated(place / FLEET, asked.name):
            await send(never_activated(device, time.time()))
    return read_snapshot(place / FLEET, asked.name, ask_all=not account.skips)
