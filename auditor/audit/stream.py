"""Outcomes as they come, for programs that want them in hand instead of in a folder."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from auditor.audit.account import AskedAccount, open_account, open_side_by_side, read_keys
from auditor.audit.beginning import with_fleet
from auditor.audit.scheduler import Stop, fan_out
from auditor.audit.workers import workers_of
from auditor.config import Settings
from auditor.errors import FleetError, StoppedError
from auditor.fleet.snapshot import read_snapshot, write_snapshot
from auditor.inventory.folder import FLEET
from auditor.model import Device, Outcome

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
        snapshot = Path(stack.enter_context(TemporaryDirectory(prefix="auditor-")), FLEET)
        if devices is None:
            named = with_fleet(settings, None)
            fleets = [(account.name, account.fleet.file) for account in named.account if account.fleet is not None]
            await anyio.to_thread.run_sync(write_snapshot, fleets, snapshot)
        parts = zip(settings.account, keys, workers_of(settings), strict=True)
        accounts = await open_side_by_side(stack, (open_account(settings, *each) for each in parts))
        send, receive = anyio.create_memory_object_stream[Outcome](WAITING)

        async def ask(asked: AskedAccount, outlet: MemoryObjectSendStream[Outcome]) -> None:
            source = read_snapshot(snapshot, asked.name) if devices is None else iter(devices)
            async with outlet:
                try:
                    await fan_out(source, asked.fetch, outlet.send, at_once=asked.workers, stop=Stop())
                except StoppedError as error:
                    stopped.append(error)

        async with anyio.create_task_group() as group, receive:
            async with send:
                for asked in accounts:
                    group.start_soon(ask, asked, send.clone())
            try:
                yield receive
            except Exception as error:  # noqa: BLE001  raised again below, outside the group that would wrap it
                failure = error
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if stopped:
        raise stopped[0]
