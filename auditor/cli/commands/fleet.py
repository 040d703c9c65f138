"""The command that shows the fleet as the platform lists it."""

import hashlib
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from auditor.cli.console import say
from auditor.cli.options import Accounts, Flag, FleetFile, LogLevel, picked
from auditor.cli.output import Out, deliver, print_rows
from auditor.errors import DriftError, FleetError, UsageError
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.config.settings import Settings
    from auditor.fleet.compare import GivenFleet
    from auditor.fleet.discovery import Enumeration


Form = Literal["csv", "json", "jsonl", "parquet", "xlsx"]


FleetForm = Literal["csv", "jsonl", "parquet"]


ENDINGS: dict[str, FleetForm] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def fleet(
    config: Path,
    /,
    *,
    out: Out = None,
    format: Form | None = None,  # noqa: A002  the flag's name
    summary: Flag = False,
    against: FleetFile = None,
    fail_on: str | None = None,
    account: Accounts = None,
    resume: Flag = False,
    log_level: LogLevel = "warning",
) -> int:
    """The accounts' devices as the platform lists them: as a fleet file, by product, or compared with a fleet file.

    An account is listed as its fleet in the settings says: products, include and exclude; one whose fleet is a file is
    listed whole. Nothing is asked about a single device. A listing that was killed or interrupted is gone on with by
    --resume, and what could not be listed whole is then listed again.

    Parameters
    ----------
    config:
        The settings, a TOML file.
    out:
        The fleet file to write, such as fleet.csv; - for standard output. With --against: the differences.
    format:
        How to write the fleet or the differences, if the file's name does not tell. A fleet file is csv, jsonl or
        parquet.
    summary:
        Print products, their devices, and these by status; as is done without -o and --against.
    against:
        A fleet file to compare with, of one account; - is standard input. unknown: in the file, and not listed.
        missing: listed and wanted, and not in the file. not_seen: not listed, and its product was not listed whole.
    fail_on:
        Exit with 4 if there are any of these differences, with commas between, such as unknown,missing.
    account:
        List this account of the settings alone; may be given several times.
    resume:
        Go on with the listing that was not ended instead of beginning anew.
    log_level:
        What is logged to standard error.
    """
    from auditor.config.loader import load_settings

    settings = picked(load_settings(config), account)
    wrong = _differences(fail_on, against)
    form = None if against is not None else _form(out, format)
    _refuse_place(out)
    if against is not None and (len(settings.account) > 1 or summary):
        raise UsageError("--against compares one account's fleet: pick one with --account, and leave out --summary")
    if summary and str(out) == "-":
        raise UsageError("--summary and -o - both go to standard output; name a file, or leave one of them out")
    from auditor.fleet.compare import given_fleet
    from auditor.fleet.discovery import held

    work = Path(settings.directory, f".listing-{settings.name}{_mark(account)}")
    with ExitStack() as stack:
        given = None if against is None else stack.enter_context(given_fleet(settings.account[0].name, against))
        stack.enter_context(held(work))
        found = _listed(settings, work, log_level, resume=resume)
        if any(each.facts.state == "pending" for each in found.accounts):
            say(f"nothing is written; to go on, give --resume too: auditor fleet {safe(config)} --resume …")
            return found.exit_code
        counts: dict[str, int] = {}
        if given is not None:
            counts = _compare(found, given, work, out, format)
        elif any(each.facts.devices for each in found.accounts):
            _write(found, work, out, form, summary=summary)
        if found.exit_code == 0:  # else --resume lists again what could not be listed
            shutil.rmtree(work, ignore_errors=True)
    if given is None and not any(each.facts.devices for each in found.accounts):
        raise FleetError("no device is listed that is wanted, so nothing is written; see fleet in the settings")
    _refuse(counts, wrong)
    return found.exit_code


def _mark(accounts: Accounts) -> str:
    """What tells the listing of some accounts from that of others, or of all."""
    names = "\n".join(sorted(set(accounts or ())))
    return f"-{hashlib.sha256(names.encode()).hexdigest()[:8]}" if names else ""


def _refuse_place(out: Path | None) -> None:
    """Refuses a file that cannot be written before hours go by.

    Raises:
        UsageError: it is a folder, a run's own file, or in no folder.
    """
    from auditor.runs.folder import refuse_own_file

    if out is None or str(out) == "-":
        return
    refuse_own_file(out)
    if out.is_dir() or not out.parent.is_dir():
        wrong = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise UsageError(f"{out}: {wrong}; name a file with -o")


def _listed(settings: "Settings", work: Path, log_level: str, *, resume: bool) -> "Enumeration":
    from auditor.cli.progress import watching
    from auditor.cli.render_run import listed
    from auditor.cli.runtime import log_to_stderr, until_signal
    from auditor.fleet.discovery import begun_at, enumerate_fleets
    from auditor.text.formatting import utc

    log_to_stderr(log_level)
    if resume:
        began = begun_at(work)
        when = "" if began is None else f" that began at {utc(began)}"
        say(
            f"going on with the listing{when}"
            if began is not None
            else "there is no listing to go on with: beginning anew"
        )
    with watching() as watch:
        found = until_signal(lambda stop: enumerate_fleets(settings, work, resume=resume, watch=watch, stop=stop))
    for account in found.accounts:
        say(listed(account.facts))
    for error in found.errors:
        say(f"stopped: {safe(error)}")
    return found


def _write(found: "Enumeration", work: Path, out: Path | None, form: FleetForm | None, *, summary: bool) -> None:
    from auditor.fleet.compare import summarize, write_fleet

    if form is not None:
        files = [each.wanted for each in found.accounts if each.wanted is not None]
        if len(files) > 1:
            say(f"note: the file is of {len(files)} accounts; as a fleet to audit each wants its own, see --account")
        deliver("json", out, show=lambda: None, write=lambda path, _: write_fleet(files, path, form))
    if summary or form is None:
        with summarize(found, work) as table:
            print_rows(table, brief=True)


def _compare(
    found: "Enumeration", given: "GivenFleet", work: Path, out: Path | None, form: Form | None
) -> dict[str, int]:
    from auditor.fleet.compare import compare

    (account,) = found.accounts
    with compare(account, given, work) as differences:
        table, counts = differences.table, differences.counts
        deliver(form, out, show=lambda: print_rows(table, brief=True), write=table.write)
        say(
            f"{counts['unknown']:,} of {given.devices:,} devices of the file are unknown to the platform, "
            f"{counts['missing']:,} of {account.facts.devices:,} that it lists are missing in the file, "
            f"{counts['not_seen']:,} of the file were not seen"
        )
    return counts


def _refuse(counts: dict[str, int], wrong: list[str]) -> None:
    if failed := [f"{counts[each]:,} {each}" for each in wrong if counts[each]]:
        raise DriftError(f"differences that were to fail: {', '.join(failed)}")


def _differences(given: str | None, against: str | None) -> list[str]:
    from auditor.fleet.compare import DIFFERENCES

    wanted = [] if given is None else [each.strip() for each in given.split(",")]
    if wanted and against is None:
        raise UsageError("--fail-on is about differences: give a fleet file with --against")
    for each in wanted:
        if each not in DIFFERENCES:
            raise UsageError(f"--fail-on {each!r}: is none of {', '.join(DIFFERENCES)}")
    return wanted


def _form(out: Path | None, form: Form | None) -> FleetForm | None:
    """How the fleet is written; None if it is not.

    Raises:
        UsageError: nothing tells how, or no fleet file is written so.
    """
    if form is not None and form not in get_args(FleetForm):
        raise UsageError(f"--format {form}: a fleet file is csv, jsonl or parquet; choose one of these")
    if out is None:
        if form is not None:
            raise UsageError(f"--format {form} is for the fleet: name a file with -o, or -o - for standard output")
        return None
    if (told := form or ENDINGS.get(out.suffix.lower())) is None and str(out) != "-":
        raise UsageError(f"{out}: its name tells no format; choose --format csv, jsonl or parquet")
    return cast("FleetForm", told or "csv")
