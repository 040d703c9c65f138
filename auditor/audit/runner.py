"""Entry points of an audit: from settings to a sealed run folder, new or resumed."""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

from auditor.audit.resume import Scope, find_unfinished, remove_working_files, reopen
from auditor.audit.run_settings import remember_settings, resume_settings
from auditor.audit.session import AuditSession
from auditor.audit.setup import create_run
from auditor.concurrency import StopToken, TimeLimit, run_cancellable, run_in_thread
from auditor.config.settings import Settings
from auditor.engine.credentials import Credentials, read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.open_files import reserve_open_files
from auditor.engine.progress import AuditResult, ProgressCallback
from auditor.errors import UsageError
from auditor.fleet.snapshot import apply_fleet_option
from auditor.runs.folder import find_run, has_pending_hooks
from auditor.runs.locking import MAX_LOCK_WAIT, PreparedRun
from auditor.runs.manifest import read_manifest


async def run_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    until: float | None = None,
    max_seconds: float | None = None,
    on_progress: ProgressCallback | None = None,
    stop: StopToken | None = None,
    priority: bool = False,
    accounts: Collection[str] = (),
    settings_file: Path | None = None,
    with_hooks: bool = False,
    trial: bool = False,
) -> AuditResult:
    """Query all devices of the fleet and write a sealed run folder.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where to create the run folder, instead of the settings' ``directory``.
        limit: query only the first so many devices.
        resume: continue the newest run of this name if it is unfinished, instead of starting a new one. Its rates, keys
            and timeouts may differ; after other changes of the settings a new run is started, and that is logged.
        until: when to be done, in seconds since 1970; devices that are not queried in time stay pending.
        max_seconds: after how many seconds to be done, likewise; setting the machine's clock does not change them.
        on_progress: called every half second with the progress.
        stop: a request to end early; devices that are not queried before that stay pending.
        priority: take precedence over other audits on this machine that share an account's quota.
        accounts: names of the only accounts to query; the run records that the others are excluded.
        settings_file: file from which the settings were loaded, which the run records.
        with_hooks: whether the caller runs the configured hooks afterwards (``run_hooks``). If it is killed before, the
            run is unfinished, and ``resume`` returns it for its hooks even if no device is left.
        trial: whether to record that the run is a trial, whose hooks are those of ``HookConfig.for_trial``.

    Raises:
        UsageError: ``limit`` is below 1, or an account name is unknown.
        SettingsError: a credential is missing, the Redis server through which quotas are shared cannot be used, or
            ``concurrency`` needs more open files than the system allows.
        FleetError: the fleet cannot be used; no run folder is left.
        RunFolderError: a run of this name is being written.
        RunNotWritableError: no run folder can be created, or the one to resume cannot be written.
        AuditInterruptedError: the end was requested before any device was queried.
    """
    time_limit = TimeLimit(max_seconds, until=until)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: must be at least 1")
    names = [account.name for account in settings.account]
    settings = apply_fleet_option(settings.restrict_to_accounts(accounts) if accounts else settings, fleet)
    excluded = tuple(name for name in names if name not in {account.name for account in settings.account})
    stop = stop or StopToken()
    credentials = await read_checked_credentials(settings, stop)
    target, now = Path(directory or settings.directory), time.time()

    def prepare() -> PreparedRun | Path:
        remember_settings(settings, settings_file)
        max_wait = _max_lock_wait(time_limit)
        scope = Scope(limit, excluded)
        unfinished = find_unfinished(target, settings, scope, with_hooks=with_hooks) if resume else None
        if unfinished is not None:
            reopened = reopen(
                unfinished, settings, now, settings_file=settings_file, with_hooks=with_hooks, max_wait=max_wait
            )
            if reopened is not None or (with_hooks and has_pending_hooks(unfinished, deferred=False)):
                return reopened or unfinished
        return create_run(
            settings,
            target,
            limit,
            now,
            excluded,
            timed=time_limit.is_set,
            settings_file=settings_file,
            with_hooks=with_hooks,
            trial=trial,
            max_wait=max_wait,
        )

    prepared = await run_cancellable(prepare, stop)
    if isinstance(prepared, Path):  # complete; only its hooks have not run
        return AuditResult(prepared, read_manifest(prepared), 0)
    return await AuditSession(
        settings, credentials, prepared, time_limit=time_limit, on_progress=on_progress, stop=stop, priority=priority
    ).run()


async def resume_audit(
    run: str | Path,
    *,
    settings: Settings | None = None,
    until: float | None = None,
    max_seconds: float | None = None,
    on_progress: ProgressCallback | None = None,
    stop: StopToken | None = None,
    priority: bool = False,
    settings_file: Path | None = None,
    with_hooks: bool = False,
    trust: str | None = None,
) -> AuditResult:
    """Query the devices of a run that are pending or failed, and seal it again; a complete run is left unchanged.

    ``run`` is a run folder, or a directory of runs, which means its newest run. If that is a trial, such as a run with
    a ``limit``, and the newest other run of its name is unfinished, it means the other one. Without ``settings``, those
    are used that were stored for the user who started the run. Rates, timeouts and credentials may differ from the
    run's; accounts and endpoints may not, and the fleet is the run's. ``trust`` is the text at the end of the error
    that refuses a run: it allows the run with the settings that the error describes. The other arguments are those of
    ``run_audit``.

    Raises:
        SettingsError: a credential is missing, the Redis server through which quotas are shared cannot be used, or
            ``concurrency`` needs more open files than the system allows.
        RunFolderError: it is no run, its accounts differ, or another process is writing it or a run of its name; or
            other users could have changed it, or its settings are not remembered, and ``trust`` does not allow that.
        RunNotWritableError: it cannot be written.
        AuditInterruptedError: the end was requested before any device was queried.
    """
    time_limit = TimeLimit(max_seconds, until=until)
    folder = find_run(Path(run), "unfinished")
    manifest = read_manifest(folder)
    if manifest.state == "complete":
        await run_in_thread(remove_working_files, folder)
        return AuditResult(folder, manifest, 0)
    own = resume_settings(folder, settings, trust=trust)
    if settings is not None and trust is None:
        remember_settings(own, settings_file)
    stop = stop or StopToken()
    credentials = await read_checked_credentials(own, stop)
    max_wait = _max_lock_wait(time_limit)
    reopen_run = partial(reopen, settings_file=settings_file, with_hooks=with_hooks, max_wait=max_wait)
    prepared = await run_cancellable(lambda: reopen_run(folder, own, time.time()), stop)
    if prepared is None:  # another process has completed it
        return AuditResult(folder, read_manifest(folder), 0)
    return await AuditSession(
        own, credentials, prepared, time_limit=time_limit, on_progress=on_progress, stop=stop, priority=priority
    ).run()


async def read_checked_credentials(settings: Settings, stop: StopToken) -> list[Credentials]:
    """Return the credentials of all accounts, after checking that there are enough open files and a usable quota."""
    reserve_open_files(settings)
    credentials = await run_cancellable(partial(read_credentials, settings), stop)
    await check_quota_sharing(settings, credentials[0].redis_password)
    return credentials


def _max_lock_wait(time_limit: TimeLimit) -> float:
    """Return how many seconds to wait for processes that use the directory of runs."""
    return min(MAX_LOCK_WAIT, max(0.0, time_limit.remaining()))
