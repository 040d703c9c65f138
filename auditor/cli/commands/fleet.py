"""Command that discovers fleets: write them, summarize them, or compare them with a fleet file."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_note
from auditor.cli.options import (
    OUTPUT,
    Accounts,
    Config,
    Flag,
    FleetFile,
    LogFormatOption,
    LogLevel,
    OutputPath,
    ProgressOption,
    fail_on_differences,
    parse_names,
    restrict_accounts,
)
from auditor.cli.output import emit, emit_file, is_stdout, print_rows
from auditor.errors import FleetError, UsageError
from auditor.text.formats import FLEET_FORMATS, FleetFormat, TableFormat, list_formats
from auditor.text.formatting import safe
from auditor.text.shell import format_command

if TYPE_CHECKING:
    from auditor.config.settings import Settings
    from auditor.fleet.compare import GivenFleet
    from auditor.fleet.discovery import DiscoveryResult


FLEET_ENDINGS: dict[str, FleetFormat] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Formats of fleet files, by the ending of the file's name."""


def fleet(
    config: Config,
    /,
    *,
    account: Accounts = None,
    resume: Flag = False,
    against: Annotated[
        FleetFile, Parameter(help="Compare with this fleet file, of one account; - is standard input.")
    ] = None,
    fail_on: str | None = None,
    summary: Annotated[bool, Parameter(negative=(), show_default=False, group=OUTPUT)] = False,
    format: Annotated[TableFormat | None, Parameter(group=OUTPUT)] = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
    progress: ProgressOption = "auto",
) -> int:
    """List the devices of accounts on the platform, and write or compare fleet files.

    Use the products, include and exclude settings of each account; list an account whose fleet is a file completely.
    Query no single device. Without -o and --against, print products and their numbers of devices.

    With --against, write the differences: unknown devices are in the file but not on the platform; missing ones are on
    the platform but not in the file; not_seen ones are in the file, and their product could not be listed completely.

    Parameters
    ----------
    resume:
        Resume unfinished discovery; list products again that could not be listed completely.
    fail_on:
        Exit with 4 if there are such differences, such as unknown,missing.
    summary:
        Print products and their numbers of devices, by status.
    format:
        Write this format; default: as the file's name ends. A fleet file is csv, jsonl or parquet.
    """
    import shutil

    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings

    log_to_stderr(log_level, log_format, progress)
    settings = restrict_accounts(load_settings(config), account)
    failing = _parse_differences(fail_on, against)
    fleet_format = None if against is not None else _resolve_fleet_format(out, format)
    _check_writable(out)
    _refuse_summary(summary=summary, against=against, accounts=len(settings.account), out=out)
    from auditor.fleet.compare import read_given_fleet
    from auditor.fleet.discovery import lock_folder

    work = Path(settings.directory, f".discovery-{settings.name}{_accounts_suffix(account)}")
    with ExitStack() as stack:
        given = None if against is None else stack.enter_context(read_given_fleet(settings.account[0].name, against))
        stack.enter_context(lock_folder(work, group_readable=settings.group_readable))
        found = _discover(settings, work, resume=resume)
        if any(each.info.state == "pending" for each in found.accounts):
            flags = {"--against": against, "--fail-on": fail_on, "--format": format, "--out": out}
            command = _resume_command(config, account or (), flags, summary=summary)
            print_error(f"no file was written; resume with: {command}")
            return found.exit_code
        counts: dict[str, int] = {}
        if given is not None:
            counts = _compare(found, given, work, out, format)
        elif any(each.info.devices for each in found.accounts):
            _write(found, work, out, fleet_format, summary=summary)
        if found.exit_code == 0:  # otherwise --resume lists again what could not be listed
            shutil.rmtree(work, ignore_errors=True)
    if given is None and not any(each.info.devices for each in found.accounts):
        raise FleetError("no listed device matches the settings, so no file was written; see fleet in the settings")
    fail_on_differences({each: counts[each] for each in failing})
    return found.exit_code


def _accounts_suffix(accounts: Accounts) -> str:
    """Return a suffix that separates the work folder of some accounts from that of others, or of all."""
    import hashlib

    names = "\n".join(sorted(set(accounts or ())))
    return f"-{hashlib.sha256(names.encode()).hexdigest()[:8]}" if names else ""


def _refuse_summary(*, summary: bool, against: str | None, accounts: int, out: Path | None) -> None:
    """Refuse a comparison of several accounts, and a summary beside other output."""
    if against is not None and (accounts > 1 or summary):
        raise UsageError("--against compares one account: select it with --account, and leave out --summary")
    if summary and out is not None and is_stdout(out):
        raise UsageError("--summary and -o - both write to standard output; name a file, or leave out one of them")


def _check_writable(out: Path | None) -> None:
    """Refuse a file that cannot be written, before the platform is queried for hours."""
    from auditor.runs.folder import refuse_run_file

    if out is None or is_stdout(out):
        return
    refuse_run_file(out)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        raise UsageError(f"{out}: {problem}; name a file with -o")


def _discover(settings: "Settings", work: Path, *, resume: bool) -> "DiscoveryResult":
    from auditor.cli.progress import show_progress
    from auditor.cli.render_run import describe_discovery
    from auditor.cli.runtime import run_until_signal
    from auditor.fleet.discovery import discover_fleets, discovery_started_at
    from auditor.text.formatting import format_utc

    if resume:
        started = discovery_started_at(work)
        print_error(
            "nothing to resume: starting a new discovery"
            if started is None
            else f"resuming the discovery that started at {format_utc(started)}"
        )
    with show_progress() as watch:
        found = run_until_signal(
            lambda stop: discover_fleets(settings, work, resume=resume, on_progress=watch, stop=stop)
        )
    for account in found.accounts:
        print_error(describe_discovery(account.info))
    for error in found.errors:
        print_error(f"stopped: {safe(error)}")
    return found


def _write(
    found: "DiscoveryResult", work: Path, out: Path | None, format_: FleetFormat | None, *, summary: bool
) -> None:
    from auditor.fleet.compare import summarize_products, write_fleet

    if format_ is not None:
        files = [each.matching for each in found.accounts if each.matching is not None]
        if len(files) > 1:
            print_note(f"the file has {len(files)} accounts; to audit it as a fleet, write one file for each --account")
        emit_file(out, lambda path: write_fleet(files, path, format_))
    if summary or format_ is None:
        with summarize_products(found, work) as table:
            print_rows(table, brief=True)


def _compare(
    found: "DiscoveryResult", given: "GivenFleet", work: Path, out: Path | None, format_: TableFormat | None
) -> dict[str, int]:
    from auditor.fleet.compare import compare_fleet

    (account,) = found.accounts
    with compare_fleet(account, given, work) as differences:
        table, counts = differences.table, differences.counts
        emit(format_, out, show=lambda: print_rows(table, brief=True), write=table.write)
        print_error(
            f"{counts['unknown']:,} of {given.devices:,} devices in the file are unknown to the platform, "
            f"{counts['missing']:,} of {account.info.devices:,} listed devices are missing in the file, "
            f"{counts['not_seen']:,} in the file were not seen"
        )
    return counts


def _resume_command(config: Path, accounts: Sequence[str], flags: Mapping[str, object], *, summary: bool) -> str:
    """Return the command that continues this one: the same accounts, the ``flags`` with a value, and the summary."""
    given: list[tuple[str, object]] = [("--account", name) for name in accounts]
    given += [(flag, value) for flag, value in flags.items() if value is not None]
    given += [("--summary", None)] if summary else []
    return format_command("auditor fleet", config, flags=[*given, ("--resume", None)])


def _parse_differences(fail_on: str | None, against: str | None) -> list[str]:
    from auditor.fleet.compare import DIFFERENCES

    if fail_on is not None and against is None:
        raise UsageError("--fail-on needs differences: give a fleet file with --against")
    return parse_names("--fail-on", fail_on, DIFFERENCES)


def _resolve_fleet_format(out: Path | None, format_: TableFormat | None) -> FleetFormat | None:
    """Return the format of the fleet file to write; None if none is to be written."""
    if format_ is not None and format_ not in FLEET_FORMATS:
        raise UsageError(f"--format {format_}: a fleet file is {list_formats(FLEET_FORMATS)}; use one of these")
    if out is None:
        if format_ is not None:
            raise UsageError(f"--format {format_} needs a file: name one with -o, or use -o - for standard output")
        return None
    resolved = format_ or FLEET_ENDINGS.get(out.suffix.lower())
    if resolved is None and not is_stdout(out):
        raise UsageError(f"{out}: the name does not give a format; use --format {list_formats(FLEET_FORMATS)}")
    return next((each for each in FLEET_FORMATS if each == resolved), "csv")
