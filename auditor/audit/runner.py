"""An audit from settings to a sealed run folder, begun anew or gone on with."""

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from auditor.audit.resume import go_on, refuse_other_settings, settings_to_resume, unfinished
from auditor.audit.session import Stretch
from auditor.audit.setup import new_run
from auditor.config.settings import Settings
from auditor.engine.account_session import read_keys
from auditor.engine.limiters import try_budget
from auditor.engine.progress import Result, Watch
from auditor.engine.worker_pool import Stop
from auditor.errors import AuditorError, StoppedAtOnceError, UsageError
from auditor.fleet.snapshot import with_fleet
from auditor.runs.folder import find_run
from auditor.runs.locking import Begun
from auditor.runs.manifest import read_manifest

T = TypeVar("T")


async def run_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    until: float | None = None,
    watch: Watch | None = None,
    stop: Stop | None = None,
    priority: bool = False,
    accounts: Collection[str] = (),
) -> Result:
    """Asks about every device of the fleet and leaves a sealed run folder.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where to make the run folder, instead of the settings' ``directory``.
        limit: only the first so many devices.
        resume: go on with the newest run of this name, if devices are pending in it, instead of beginning a new one.
        until: when to be done, in seconds since 1970; what is not asked in time stays pending.
        watch: told every half second where the audit stands.
        stop: a wish to end early; what is not asked by then stays pending.
        priority: go before other audits on this machine that share an account's quota.
        accounts: only these of the settings' accounts, by their names; the run says that it leaves the others out.

    Raises:
        UsageError: ``limit`` is below 1, or there is no account of a name.
        SettingsError: a key is not there, or the Redis server where quotas are shared cannot be used.
        FleetError: the fleet cannot be used; no run folder is left.
        RunFolderError: a run of this name is being written, or the one to resume was asked with other settings.
        RunNotWritableError: no run folder can be made, or the one to resume cannot be written.
        StoppedAtOnceError: the end was wished before anything was asked.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    every = [account.name for account in settings.account]
    settings = with_fleet(settings.only(accounts) if accounts else settings, fleet)
    left_out = tuple(name for name in every if name not in {account.name for account in settings.account})
    stop = stop or Stop()
    keys = await _unless_stopped(partial(read_keys, settings), stop)
    await try_budget(settings, keys[0].budget)
    where, now = Path(directory or settings.directory), time.time()

    def begin() -> Begun:
        old = unfinished(where, settings.name) if resume else None
        if old is not None:
            refuse_other_settings(old, settings, limit)
            if (begun := go_on(old, settings, now)) is not None:
                return begun
        return new_run(settings, where, limit, now, left_out, timed=until is not None)

    begun = await _unless_stopped(begin, stop)
    return await Stretch(settings, keys, begun, until=until, watch=watch, stop=stop, priority=priority).run()


async def resume_audit(
    run: str | Path,
    *,
    settings: Settings | None = None,
    until: float | None = None,
    watch: Watch | None = None,
    stop: Stop | None = None,
    priority: bool = False,
) -> Result:
    """Asks about the devices of a run that are pending or failed, and seals it anew.

    Args:
        run: a run folder, or a directory of runs, whose newest is meant.
        settings: other ones than the run's own. Pace, timeouts and keys may differ; accounts and endpoints may not,
            and the fleet is the run's.
        until: as in ``run_audit``.
        watch: as in ``run_audit``.
        stop: as in ``run_audit``.
        priority: as in ``run_audit``.

    Returns:
        What it came to; a run that is complete already is left as it is.

    Raises:
        SettingsError: a key is not there, or the Redis server where quotas are shared cannot be used.
        RunFolderError: it is no run, another process is writing it or one of its name, or it asked other accounts.
        RunNotWritableError: it cannot be written.
        StoppedAtOnceError: the end was wished before anything was asked.
    """
    folder = find_run(Path(run))
    manifest = read_manifest(folder)
    if manifest.state == "complete":
        return Result(folder, manifest, 0)
    own = settings_to_resume(folder, settings)
    stop = stop or Stop()
    keys = await _unless_stopped(partial(read_keys, own), stop)
    await try_budget(own, keys[0].budget)
    begun = await _unless_stopped(lambda: go_on(folder, own, time.time()), stop)
    if begun is None:
        return Result(folder, read_manifest(folder), 0)
    return await Stretch(own, keys, begun, until=until, watch=watch, stop=stop, priority=priority).run()


async def _unless_stopped(begin: Callable[[], T], stop: Stop) -> T:
    """What ``begin`` gives, in a thread; a wish to stop leaves it alone, for nothing was asked yet.

    Raises:
        StoppedAtOnceError: the end was wished meanwhile.
    """
    made: list[T] = []
    failures: list[AuditorError] = []

    async def wait() -> None:
        try:
            made.append(await anyio.to_thread.run_sync(begin, abandon_on_cancel=True))
        except AuditorError as error:  # raised below, outside the group that would wrap it
            failures.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await stop.wished()
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not made:
        raise StoppedAtOnceError(f"stopped before anything was asked: {stop.reason}")
    return made[0]
