"""Commands that audit: check, plan, run, resume and prune."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.cli.commands.cluster import is_cluster_run, prune_cut_runs, refuse_flags, resume_cut_run, start_on
from auditor.cli.console import print_error, print_line, print_notes, print_path
from auditor.cli.execution import (
    StartRecorder,
    describe_plain_http,
    noting_settings_errors,
    reporting_to_switch,
    run_audit_command,
)
from auditor.cli.options import (
    DEVICES,
    LIMITS,
    OUTPUT,
    SELECTION,
    Accounts,
    Config,
    Flag,
    FleetFile,
    Hooks,
    Limit,
    LimitFlags,
    LimitOptions,
    LogFormatOption,
    LogLevel,
    ProgressOption,
    ResumePath,
    SelectionFlags,
    SelectionOptions,
    apply_selection_flags,
    parse_duration_flag,
    parse_time_limits,
    require_positive,
    restrict_accounts,
    resume_from,
)
from auditor.errors import RunNotWritableError, SettingsError
from auditor.text.formatting import format_count, safe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection

    from auditor.concurrency import StopToken
    from auditor.config.settings import PublishSettings, Settings
    from auditor.engine.progress import AuditResult, ProgressCallback
    from auditor.hooks.prepare import HookConfig


def check(
    config: Config,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
) -> int:
    """Check settings, keys, fleet files and the directory of runs, and make one test call per account.

    If the platform lists the fleet, also fetch its products and the first page of devices. With [cluster], check that
    its storage lists what is put into it, and keeps what is written. Of [[publish]], check packages, folders, key files
    and secrets.
    """
    from auditor.audit.preflight import preflight
    from auditor.cli.commands.cluster import check_run_storage
    from auditor.cli.render_run import print_checks
    from auditor.cli.runtime import log_to_stderr
    from auditor.concurrency import run_event_loop
    from auditor.config.loader import load_settings
    from auditor.hooks.ping import DeadMansSwitch
    from auditor.hooks.prepare import prepare_hooks

    log_to_stderr(log_level, log_format)
    settings = restrict_accounts(load_settings(config), account)
    print_notes(describe_plain_http(settings.account))
    prepare_hooks(settings, source=str(config))
    if settings.ping is not None:
        DeadMansSwitch.open(settings.ping, str(config))
    checks = run_event_loop(lambda: preflight(settings, fleet=fleet), use_uvloop=True)
    print_checks(checks)
    failed = any(each.problem is not None for each in checks)
    if settings.cluster is None and (problem := _find_directory_problem(Path(settings.directory))) is not None:
        print_line(f"FAIL {safe(problem)}")
        failed = True
    for table in settings.publish:
        failed = not _check_destination(table, str(config)) or failed
    if settings.cluster is not None:
        check_run_storage(settings.cluster)
    return 3 if failed else 0


def _find_directory_problem(directory: Path) -> str | None:
    """Return why this user cannot create a run in a directory, in a sentence; None: it can."""
    try:
        existing = next(each for each in (directory, *directory.parents) if os.path.lexists(each))
        is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # a folder on the way cannot be searched
        is_writable = False
    if is_writable:
        return None
    return f"directory: {directory}: this user cannot create a run there; give another directory in the settings"


def _check_destination(table: "PublishSettings", source: str) -> bool:
    """Print whether a destination has what it needs on this machine; return it."""
    from auditor.publish.destinations import check_destination

    try:
        print_line(f"ok   publish {safe(table.name)}: {safe(check_destination(table, source))}")
    except SettingsError as error:
        for sentence in error.sentences:
            print_line(f"FAIL {safe(sentence)}")
        return False
    return True


def plan(
    config: Config,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    limit: Limit = None,
    window: Annotated[str | None, Parameter(group=LIMITS)] = None,
    max_calls: Annotated[int | None, Parameter(group=SELECTION)] = None,
    sample: Annotated[int | None, Parameter(group=SELECTION)] = None,
    precision: Annotated[str | None, Parameter(group=SELECTION)] = None,
    format: Annotated[Literal["table", "json"], Parameter(group=OUTPUT)] = "table",  # noqa: A002  the flag's name
) -> int:
    """Estimate calls and duration, and whether they fit a time window.

    Compare incremental, rolling and sample runs, too: their calls, and how old or inexact their results may be. Make no
    call and need no key, except for a fleet that the platform lists and no run has recorded: read its device counts,
    200 products a call, and with filters up to 40 pages of devices. With --window, exit with 1 unless reading the
    complete fleet fits.

    Parameters
    ----------
    window:
        Time that is available, such as 8h or 1h30m. If the audit does not fit, print what would.
    max_calls:
        Compare with a budget of INT calls a run.
    sample:
        Compare with a sample of INT devices; default 10,000.
    precision:
        Compare with a sample that gives versions' shares to plus or minus this much; default 1%.
    format:
        Write a table or JSON.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.planning.planner import plan_audit

    log_to_stderr("warning")
    settings = restrict_accounts(load_settings(config), account)
    max_devices = require_positive("--limit", limit)
    planned = plan_audit(
        settings,
        fleet=fleet,
        limit=max_devices,
        window=None if window is None else parse_duration_flag("--window", window),
        max_calls=max_calls,
        sample_size=sample,
        precision=precision,
        count_devices=_count_listed_fleets,
    )
    if format == "json":
        import orjson

        print_line(orjson.dumps(planned, option=orjson.OPT_INDENT_2).decode())
    else:
        from auditor.cli.render_plan import print_plan

        requested = any(each is not None for each in (window, max_calls, sample, precision))
        print_plan(planned, compare=requested or planned.seconds is not None)
    return 0 if window is None or planned.fits else 1


def _count_listed_fleets(settings: "Settings", names: "Collection[str]") -> dict[str, dict[int, int]]:
    """Count the devices of listed fleets on the platform, and say so."""
    from auditor.concurrency import run_event_loop
    from auditor.planning.device_counts import count_listed_fleets

    print_notes([f"no run has recorded the fleet of {', '.join(names)}: reading the device counts from the platform"])
    print_notes(describe_plain_http(settings.restrict_to_accounts(names).account))
    return run_event_loop(lambda: count_listed_fleets(settings, names), use_uvloop=True)


def run(
    config: Config,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    limit: Limit = None,
    selection: SelectionOptions = None,
    resume: Annotated[bool, Parameter(negative=(), show_default=False, group=DEVICES)] = False,
    limits: LimitOptions = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    hooks: Hooks = False,
    on: str | None = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
    progress: ProgressOption = "auto",
) -> int:
    """Query every device, or a selection, and write a run folder.

    Print the folder's path to standard output, and progress to standard error. The last line on standard error is the
    exit code with its reason. Afterwards, run the [policy], [report], [[publish]] and [[notify]] hooks of the settings.
    Of these only a violated policy changes the exit code, from 0 to 4. With --account, --limit, --sample, --precision
    or --out, write no report, Excel file or metrics outside of the run folder, publish nothing, and send no message,
    unless --hooks is given. At a deadline the results of the previous run are carried for the remaining devices;
    devices without one stay pending.

    Parameters
    ----------
    resume:
        Resume the newest run of this name if it is unfinished; otherwise start a new one. Continue it with changed
        rates, keys and timeouts; after other changes of the settings, start a new one.
    out:
        Create the run folder in this directory instead of the one in the settings.
    on:
        Query by several processes, with the storage of [cluster]: dask:N starts N on this machine (dask: one for each
        core), tls://HOST:PORT or tcp://127.0.0.1:PORT is a scheduler of Dask whose workers have AUDITOR_SETTINGS.
        Continue the newest run that is not sealed, if there is one.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.config.ping import read_ping
    from auditor.hooks.prepare import prepare_hooks

    log_to_stderr(log_level, log_format, progress)
    limits = limits or LimitFlags()
    with reporting_to_switch() as switch, StartRecorder(config) as recorder:
        named = read_ping(config)  # also from settings that have faults
        trial = [] if hooks else _trial_flags(named.directory, account, limit, selection, out)
        recorder.enabled, recorder.directory = not trial, named.directory
        if not trial:
            switch.start(named.ping, str(config))
        settings = apply_selection_flags(load_settings(config), selection, where=str(config))
        require_positive("--limit", limit)
        # Refuses unknown names; the run stores all accounts.
        print_notes(describe_plain_http(restrict_accounts(settings, account).account))
        until, max_seconds = parse_time_limits(limits)
        if on is not None:
            flags = {"--fleet": fleet, "--limit": limit, "--resume": resume, "a flag that selects devices": selection}
            refuse_flags(flags | _given_limits(limits))
        configured = prepare_hooks(settings, source=str(config))
        if trial:
            configured = _leave_out_hooks(configured, f"with {', '.join(trial)}")
        if on is not None:
            prepare = partial(log_to_stderr, log_level, log_format)
            on_engine = start_on(on, settings, config, account or (), out, prepare=prepare)

            def start_engine(watch: "ProgressCallback", stop: "StopToken") -> "Awaitable[AuditResult]":
                return on_engine(recorder.watch(watch), stop)

            return run_audit_command(start_engine, configured, switch, use_uvloop=False)  # Dask can crash in it

        def start(watch: "ProgressCallback", stop: "StopToken") -> "Awaitable[AuditResult]":
            from auditor.audit.runner import run_audit  # takes a second, in which signals are handled

            return run_audit(
                settings,
                fleet=fleet,
                directory=out,
                limit=limit,
                resume=resume,
                until=until,
                max_seconds=max_seconds,
                priority=limits.priority,
                accounts=account or (),
                settings_file=config,
                with_hooks=True,
                trial=bool(trial),
                on_progress=recorder.watch(watch),
                stop=stop,
            )

        return run_audit_command(start, configured, switch)


def _trial_flags(
    directory: Path,
    accounts: list[str] | None,
    limit: int | None,
    selection: SelectionFlags | None,
    out: Path | None,
) -> list[str]:
    """Return the given flags that make a run a trial: it covers a part of the fleet, or is stored elsewhere."""
    flags = selection or SelectionFlags()
    given = {
        "--account": accounts,
        "--limit": limit,
        "--sample": flags.sample_size,
        "--precision": flags.precision,
        "--out": out is not None and out.resolve() != directory.resolve(),
    }
    return [flag for flag, value in given.items() if value]


def _given_limits(flags: LimitFlags) -> dict[str, object]:
    """Return the values of the flags about time and quota, by flag."""
    return {"--deadline": flags.deadline, "--for": flags.duration, "--priority": flags.priority}


def _leave_out_hooks(configured: "HookConfig", description: str) -> "HookConfig":
    """Return the hooks of a trial, which is a run of this description, and say which it leaves out."""
    configured = configured.for_trial()
    if configured.withheld:
        names = ", ".join(configured.withheld)
        print_notes([f"a run {description} leaves out what others read every day: {names}; --hooks includes it"])
    return configured


def resume(
    run: ResumePath,
    /,
    *,
    settings: Path | None = None,
    trust: str | None = None,
    limits: LimitOptions = None,
    hooks: Hooks = False,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
    progress: ProgressOption = "auto",
) -> int:
    """Resume an unfinished run; retry failed devices.

    Keep the results that exist. Use the run's own fleet, and the settings that you started it with, also for its hooks.
    Do not change a complete run, but run the hooks that have not run. The last line is the exit code with its reason.
    If the run was cut, query its open shards here, one after the other; this needs --settings. Leave a shard to
    another process while that stores checkpoints.

    Parameters
    ----------
    settings:
        Use the settings in this file, such as another quota or other keys for the same accounts. Needed if the run was
        started by another user or on another machine, or if its directory belongs to others.
    trust:
        Resume a run that other users could have changed. The refusal prints what its settings would do, and the text to
        give.
    """
    from auditor.audit.run_settings import resume_settings
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.config.ping import read_ping
    from auditor.hooks.prepare import prepare_hooks, prepare_resume_hooks
    from auditor.runs.folder import has_pending_hooks
    from auditor.runs.manifest import read_manifest

    log_to_stderr(log_level, log_format, progress)
    limits = limits or LimitFlags()
    if is_cluster_run(run):
        refuse_flags({"--trust": trust, "--hooks": hooks} | _given_limits(limits))
        return resume_cut_run(run, settings)
    with reporting_to_switch() as switch:
        folder = resume_from(Path(run))
        manifest = read_manifest(folder)
        trial = manifest.trial and not hooks
        if settings is not None and not trial:
            switch.start(read_ping(settings).ping, str(settings))
        if manifest.state == "complete" and not has_pending_hooks(folder):
            print_error(f"{safe(folder)}: is complete; nothing to resume")
            print_path(folder)
            return 0
        given = None if settings is None else load_settings(settings)
        own = resume_settings(folder, given, trust=trust, quiet=True)
        if given is None and not trial:
            with noting_settings_errors():
                switch.start(own.ping, f"settings of {folder}")
        until, max_seconds = parse_time_limits(limits)
        if given is None:
            configured = prepare_resume_hooks(own, source=f"settings of {folder}")
        else:
            configured = prepare_hooks(given, source=str(settings))
        if trial:
            configured = _leave_out_hooks(configured, "that was started as a trial")
        print_notes(configured.notes)

        def start(watch: "ProgressCallback", stop: "StopToken") -> "Awaitable[AuditResult]":
            from auditor.audit.runner import resume_audit

            return resume_audit(
                folder,
                settings=given,
                until=until,
                max_seconds=max_seconds,
                priority=limits.priority,
                settings_file=settings,
                with_hooks=True,
                trust=trust,
                on_progress=watch,
                stop=stop,
            )

        return run_audit_command(start, configured, switch)


def prune(
    directory: str = "audits",
    /,
    *,
    keep: int | None = None,
    keep_days: int | None = None,
    dry_run: Flag = False,
) -> int:
    """Delete old runs and print their names.

    Keep the newest successful run of each name, however old it is, and runs in progress. The changes that deleted runs
    recorded stay in the folder .changes. In the storage of runs that were cut, keep those that are not sealed.

    Parameters
    ----------
    directory:
        Directory of runs, or the address of a storage of runs that were cut.
    keep:
        Keep the newest INT runs of each name.
    keep_days:
        Keep runs that started less than INT days ago, by run.json. With --keep, a run stays if either keeps it.
    dry_run:
        Print what would be deleted, and delete nothing.
    """
    from auditor.runs.folder import is_cut_run
    from auditor.runs.retention import prune_runs

    if is_cut_run(directory):
        return prune_cut_runs(directory, keep=keep, keep_days=keep_days, dry_run=dry_run)
    pruned = prune_runs(directory, keep=keep, keep_days=keep_days, dry_run=dry_run)
    for folder in pruned.removed:
        print_path(folder)
    for sentence in pruned.skipped:
        print_error(f"skipped: {safe(sentence)}")
    for sentence in pruned.failed:
        print_error(f"failed: {safe(sentence)}")
    would = "would be deleted" if dry_run else "deleted"
    print_error(f"{format_count(len(pruned.removed), 'run')} {would}, {pruned.remaining:,} kept")
    return RunNotWritableError.exit_code if pruned.failed else 0
