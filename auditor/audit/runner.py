"""Entry points of an audit: from settings to a sealed run folder, new or resumed."""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

from auditor.audit.resume import find_unfinished, refuse_changed_settings, reopen, settings_to_resume
from auditor.audit.session import AuditSession
from auditor.audit.setup import create_run
from auditor.concurrency import StopToken, run_cancellable
from auditor.config.settings import Settings
from auditor.engine.account_session import read_credentials
from auditor.engine.limiters import check_quota_sharing
from auditor.engine.progress import AuditResult, ProgressCallback
from auditor.errors import UsageError
from auditor.fleet.snapshot import apply_fleet_option
from auditor.runs.folder import find_run
from auditor.runs.locking import PreparedRun
from auditor.runs.manifest import read_manifest


async def run_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    until: float | None = None,
    on_progress: ProgressCallback | None = None,
    stop: StopToken | None = None,
    priority: bool = False,
    accounts: Collection[str] = (),
) -> AuditResult:
    """Query all devices of the fleet and write a sealed run folder.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where to create the run folder, instead of the settings' ``directory``.
        limit: query only the first so many devices.
        resume: continue the newest run of this name if it is unfinished, instead of starting a new one.
        until: when to be done, in seconds since 1970; devices that are not queried in time stay pending.
        on_progress: called every half second with the progress.
        stop: a request to end early; devices that are not queried before that stay pending.
        priority: take precedence over other audits on this machine that share an account's quota.
        accounts: names of the only accounts to query; the run records that the others are excluded.

    Raises:
        UsageError: ``limit`` is below 1, or an account name is unknown.
        SettingsError: a credential is missing, or the Redis server through which quotas are shared cannot be used.
        FleetError: the fleet cannot be used; no run folder is left.
        RunFolderError: a run of this name is being written, or the settings of the run to resume have changed.
        RunNotWritableError: no run folder can be created, or the one to resume cannot be written.
        AuditInterruptedError: the end was requested before any device was queried.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: must be at least 1")
    names = [account.name for account in settings.account]
    settings = apply_fleet_option(settings.restrict_to_accounts(accounts) if accounts else settings, fleet)
    excluded = tuple(name for name in names if name not in {account.name for account in settings.account})
    stop = stop or StopToken()
    credentials = await run_cancellable(partial(read_credentials, settings), stop)
    await check_quota_sharing(settings, credentials[0].redis_password)
    target, now = Path(directory or settings.directory), time.time()

    def prepare() -> PreparedRun:
        unfinished = find_unfinished(target, settings.name) if resume else None
        if unfinished is not None:
            refuse_changed_settings(unfinished, settings, limit)
            if (reopened := reopen(unfinished, settings, now)) is not None:
                return reopened
        return create_run(settings, target, limit, now, excluded, timed=until is not None)

    prepared = await run_cancellable(prepare, stop)
    return await AuditSession(
        settings, credentials, prepared, until=until, on_progress=on_progress, stop=stop, priority=priority
    ).run()


async def resume_audit(
    run: str | Path,
    *,
    settings: Settings | None = None,
    until: float | None = None,
    on_progress: ProgressCallback | None = None,
    stop: StopToken | None = None,
    priority: bool = False,
) -> AuditResult:
    """Query the devices of a run that are pending or failed, and seal it again; a complete run is left unchanged.

    ``run`` is a run folder, or a directory of runs (its newest run is used). ``settings`` replace the run's own: rates,
    timeouts and credentials may differ; accounts and endpoints may not, and the fleet is the run's. The other arguments
    are those of ``run_audit``.

    Raises:
        SettingsError: a credential is missing, or the Redis server through which quotas are shared cannot be used.
        RunFolderError: it is no run, its accounts differ, or another process is writing it or a run of its name.
        RunNotWritableError: it cannot be written.
        AuditInterruptedError: the end was requested before any device was queried.
    """
    folder = find_run(Path(run))
    manifest = read_manifest(folder)
    if manifest.state == "complete":
        return AuditResult(folder, manifest, 0)
    own = settings_to_resume(folder, settings)
    stop = stop or StopToken()
    credentials = await run_cancellable(partial(read_credentials, own), stop)
    await check_quota_sharing(own, credentials[0].redis_password)
    prepared = await run_cancellable(lambda: reopen(folder, own, time.time()), stop)
    if prepared is None:  # another process has completed it
        return AuditResult(folder, read_manifest(folder), 0)
    return await AuditSession(
        own, credentials, prepared, until=until, on_progress=on_progress, stop=stop, priority=priority
    ).run()
