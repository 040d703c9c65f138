"""Outcomes as a stream, for programs that do not need a run folder."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from auditor.concurrency import RunningClock, StopToken, run_in_abandonable_thread, run_in_thread, unwrapping_task_group
from auditor.config.settings import Account, Settings
from auditor.engine.account_session import AccountSession, open_accounts
from auditor.engine.allocation import concurrency_per_account
from auditor.engine.credentials import read_credentials
from auditor.engine.device_reader import never_activated_result
from auditor.engine.monitor import watch_clock
from auditor.engine.open_files import reserve_open_files
from auditor.engine.worker_pool import run_workers
from auditor.errors import AuditStoppedError, FleetError
from auditor.fleet.crawler import discover_account
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.snapshot import apply_fleet_option, fleet_files, write_snapshot
from auditor.fleet.table import read_never_activated, read_snapshot
from auditor.models import Device, Outcome
from auditor.runs.folder import FLEET
from auditor.storage.files import private_folder

MAX_BUFFERED_OUTCOMES = 100
"""Maximum number of outcomes that wait for the reader; then queries wait."""


@asynccontextmanager
async def stream_outcomes(
    settings: Settings, devices: Iterable[Device] | None = None
) -> AsyncIterator[MemoryObjectReceiveStream[Outcome]]:
    """Query all devices and yield a stream of their outcomes, in no order; nothing is written.

        async with auditor.stream_outcomes(settings) as stream:
            async for outcome in stream:
                ...

    Args:
        settings: see ``load_settings``.
        devices: the devices to query, instead of the fleet in the settings; pulled one by one. One account only.

    Raises:
        SettingsError, FleetError: before any device is queried.
        AuditStoppedError: from the block's end, when an account was stopped; its devices have no outcome.
    """
    reserve_open_files(settings)
    credentials = await run_in_abandonable_thread(read_credentials, settings)
    if devices is not None and len(settings.account) > 1:
        raise FleetError(f"devices were given for {len(settings.account)} accounts; open a stream for each account")
    stopped: list[AuditStoppedError] = []
    async with AsyncExitStack() as stack:
        work = stack.enter_context(private_folder("stream"))
        if devices is None and (files := fleet_files(apply_fleet_option(settings, None))):
            await run_in_thread(write_snapshot, files, work / FLEET)
        clock = RunningClock()
        sessions = await open_accounts(stack, settings, credentials, concurrency_per_account(settings), clock=clock)
        send, receive = anyio.create_memory_object_stream[Outcome](MAX_BUFFERED_OUTCOMES)

        async def query(account: Account, session: AccountSession, outlet: MemoryObjectSendStream[Outcome]) -> None:
            async with outlet:
                try:
                    source = devices if devices is not None else await _fleet(account, session, work, outlet.send)
                    await run_workers(
                        iter(source),
                        session.fetch,
                        outlet.send,
                        concurrency=session.workers,
                        stop=StopToken(),
                        paused=session.paused,
                    )
                except AuditStoppedError as error:  # the other accounts continue
                    stopped.append(error)

        async with receive, unwrapping_task_group() as group:
            group.start_soon(watch_clock, clock)
            async with send:
                for account, session in zip(settings.account, sessions, strict=True):
                    group.start_soon(query, account, session, send.clone())
            yield receive
            group.cancel_scope.cancel()
    if stopped:
        raise stopped[0]


async def _fleet(
    account: Account, session: AccountSession, work: Path, send: Callable[[Outcome], Awaitable[None]]
) -> Iterator[Device]:
    """Return the devices to query; results that need no request, of devices never activated, are sent first."""
    if account.fleet is None or not account.uses_discovery:
        return read_snapshot(work / FLEET, account.name)
    folder = Path(mkdtemp(dir=work))
    with DiscoveryJournal(folder / "discovery.jsonl", account.fleet) as journal:
        await discover_account(session, journal, account.fleet, folder / FLEET, stop=StopToken())
    if account.skips_never_activated:
        for device in read_never_activated(folder / FLEET, session.name):
            await send(never_activated_result(device, session.platform_time()))
    return read_snapshot(folder / FLEET, session.name, include_never_activated=not account.skips_never_activated)
