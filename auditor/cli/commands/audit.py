"""Commands that ask the platform, and that tidy up what audits left.

The command that tells beforehand what an audit will take.
"""

from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from auditor.cli.console import say, tell
from auditor.cli.execution import audit_and_tell
from auditor.cli.options import (
    Accounts,
    Flag,
    FleetFile,
    For,
    LogLevel,
    PartFlags,
    at_least_one,
    picked,
    point_in_time,
    with_part,
)
from auditor.cli.output import note
from auditor.errors import RunNotWritableError
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.engine.progress import Result, Watch
    from auditor.engine.worker_pool import Stop


def run(
    config: Path,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    out: Path | None = None,
    limit: int | None = None,
    resume: Flag = False,
    deadline: str | None = None,
    for_: For = None,
    priority: Flag = False,
    part: PartFlags = None,
    log_level: LogLevel = "warning",
) -> int:
    """Audit a fleet: ask about every device, or about those that are worth it, and leave a sealed run folder.

    The folder's path goes to standard output, progress to standard error.
    A second audit of the same name in the same directory is refused while one is under way.
    What [policy], [report] and [notify] in the settings ask for is done after it, whatever it came to.
    Of that only the policy has a say in the exit code: 0 becomes 4 if it is violated.

    Parameters
    ----------
    config:
        The settings, a TOML file; see configs/ for examples.
    account:
        Only this account of the settings; may be given several times. The run says that it leaves the others out.
    fleet:
        A fleet file instead of the one in the settings, for one account; - is standard input.
    out:
        Make the run folder in this directory instead of the settings' one.
    limit:
        Ask only about the first so many devices, of all accounts together.
    resume:
        Go on with the newest run of this name if devices are pending in it; else begin a new one.
    deadline:
        Be done by a time of day such as 06:00, or by 2026-11-23T06:00; of what is not asked in time the answers of the
        run before are carried, if there is one, and the rest stays pending.
    for_:
        Be done in a length of time such as 4h or 1h30m; likewise.
    priority:
        Go before other audits that share the account's quota; they get a tenth of it meanwhile.
    part:
        Which devices, if not the whole fleet.
    log_level:
        What is logged to standard error.
    """
    from auditor.config.loader import load_settings
    from auditor.hooks.prepare import prepare_following

    settings, first = with_part(load_settings(config), part, where=str(config)), at_least_one("--limit", limit)
    picked(settings, account)  # or what is wrong with it
    until = point_in_time(deadline, for_)
    following = prepare_following(settings, where=str(config))

    def start(watch: "Watch", stop: "Stop") -> "Awaitable[Result]":
        from auditor.audit.runner import run_audit

        return run_audit(
            settings,
            fleet=fleet,
            directory=out,
            limit=first,
            resume=resume,
            until=until,
            watch=watch,
            stop=stop,
            priority=priority,
            accounts=account or (),
        )

    return audit_and_tell(start, log_level, following)


def resume(
    run: Path,
    /,
    *,
    settings: Path | None = None,
    deadline: str | None = None,
    for_: For = None,
    priority: Flag = False,
    log_level: LogLevel = "warning",
) -> int:
    """Go on with a run that was killed, interrupted, out of time or disk, or left with failures.

    What was answered is kept; devices that are pending or failed are asked.
    Fleet and settings are the run's own, also for what follows a run. A run that is complete is left as it is.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant.
    settings:
        Other settings for what is left, a TOML file: another pace or other keys, the same accounts.
    deadline:
        Be done by a time of day such as 06:00, or by 2026-11-23T06:00; what is not asked in time stays pending.
    for_:
        Be done in a length of time such as 4h or 1h30m.
    priority:
        Go before other audits that share the account's quota; they get a tenth of it meanwhile.
    log_level:
        What is logged to standard error.
    """
    from auditor.config.loader import load_settings
    from auditor.hooks.prepare import prepare_again, prepare_following
    from auditor.runs.folder import find_run
    from auditor.runs.manifest import read_manifest

    folder = find_run(run)
    if read_manifest(folder).state == "complete":
        say(f"{safe(folder)}: is complete; nothing is left to ask")
        tell(str(folder))
        return 0
    others = None if settings is None else load_settings(settings)
    until = point_in_time(deadline, for_)
    following = prepare_again(folder) if others is None else prepare_following(others, where=str(settings))
    note(following.notes)

    def start(watch: "Watch", stop: "Stop") -> "Awaitable[Result]":
        from auditor.audit.runner import resume_audit

        return resume_audit(folder, settings=others, until=until, watch=watch, stop=stop, priority=priority)

    return audit_and_tell(start, log_level, following)


def check(
    config: Path,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    log_level: LogLevel = "warning",
) -> int:
    """Look before an audit: settings, what follows it, keys, the whole fleet, and one signed call per account.

    Where the platform lists the fleet, its products and a first page of devices are asked for besides.

    Parameters
    ----------
    config:
        The settings, a TOML file.
    account:
        Only this account of the settings; may be given several times.
    fleet:
        A fleet file instead of the one in the settings, for one account.
    log_level:
        What is logged to standard error.
    """
    from auditor.audit.preflight import check as look
    from auditor.cli.render_run import print_checks
    from auditor.cli.runtime import in_loop, log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.hooks.prepare import prepare_following

    log_to_stderr(log_level)
    settings = picked(load_settings(config), account)
    prepare_following(settings, where=str(config))
    checks = in_loop(lambda: look(settings, fleet=fleet))
    print_checks(checks)
    return 3 if any(each.problem is not None for each in checks) else 0


def prune(
    directory: Path = Path("audits"),
    /,
    *,
    keep: int,
    dry_run: Flag = False,
) -> int:
    """Delete old runs; prints those that are gone.

    Of each name the newest stay, and the newest complete one, however old it is. A run that is being written stays.

    Parameters
    ----------
    directory:
        A directory of runs.
    keep:
        How many runs of each name stay.
    dry_run:
        Print what would go, and delete nothing.
    """
    from auditor.runs.retention import prune as prune_runs

    pruned = prune_runs(directory, keep=keep, dry_run=dry_run)
    for folder in pruned.removed:
        tell(safe(folder))
    for sentence in pruned.skipped:
        say(f"left alone: {safe(sentence)}")
    for sentence in pruned.failed:
        say(f"failed: {safe(sentence)}")
    say(f"{len(pruned.removed)} runs {'would go' if dry_run else 'removed'}, {pruned.kept} kept")
    return RunNotWritableError.exit_code if pruned.failed else 0


def plan(
    config: Path,
    /,
    *,
    account: Accounts = None,
    fleet: FleetFile = None,
    limit: int | None = None,
    window: str | None = None,
    calls: int | None = None,
    sample: int | None = None,
    precision: str | None = None,
    format: Literal["table", "json"] = "table",  # noqa: A002  the flag's name
) -> int:
    """Tell what an audit will take: calls, time at the quotas, and whether it fits into a window.

    Below that, strategies that ask less are compared: what they take, and how old or how wrong what they tell may be.
    Nothing is asked and no key is needed. With --window the exit code is 0 if asking all is known to fit, else 1.

    Parameters
    ----------
    config:
        The settings, a TOML file. The newest run of their name tells how many calls a device takes.
    account:
        Only this account of the settings; may be given several times.
    fleet:
        A fleet file instead of the one in the settings, for one account; - is standard input.
    limit:
        Plan for the first so many devices only, of all accounts together.
    window:
        The length of time that there is, such as 8h or 1h30m; what does not fit is told with what would.
    calls:
        A budget of calls a night to compare with.
    sample:
        A sample of so many devices to compare with. Without it one of 10,000.
    precision:
        A sample to compare with that knows versions' shares to plus or minus so much. Without it 1%.
    format:
        How to write it.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.planning.planner import plan_audit
    from auditor.text.durations import seconds_of

    log_to_stderr("warning")
    settings, first = picked(load_settings(config), account), at_least_one("--limit", limit)
    planned = plan_audit(
        settings,
        fleet=fleet,
        limit=first,
        window=None if window is None else seconds_of(window),
        calls=calls,
        sample=sample,
        precision=precision,
    )
    if format == "json":
        import orjson

        tell(orjson.dumps(planned, option=orjson.OPT_INDENT_2).decode())
    else:
        from auditor.cli.render_plan import print_plan

        print_plan(planned)
    return 0 if window is None or planned.fits else 1
