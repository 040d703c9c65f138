"""Commands that read runs.

The command that shows runs over time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import say, tell
from auditor.cli.options import Flag, at_least_one
from auditor.cli.output import Format, Out, chosen, deliver, note, print_rows
from auditor.errors import DriftError, UsageError
from auditor.models import DeviceState, Source
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.analysis.drift import Drift


Version = Annotated[str | None, Parameter(name="--version")]


def inventory(run: Path, /, *, format: Format | None = None, out: Out = None) -> int:  # noqa: A002  the flag's name
    """Who runs what: every version of every module, how many devices run it, and their share.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    format:
        How to write it: a table, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.cli.render_run import print_inventory
    from auditor.query.run import Run

    form = chosen(format, out)
    with Run(run) as opened:
        note(opened.doubts)
        deliver(
            form,
            out,
            show=lambda: print_inventory(
                opened.manifest, opened.devices, opened.inventory(), sample=opened.sample, ages=opened.ages
            ),
            write=opened.write_inventory,
        )
    return 0


def devices(
    run: Path,
    /,
    *,
    product: str | None = None,
    module: str | None = None,
    version: Version = None,
    below: str | None = None,
    above: str | None = None,
    status: DeviceState | None = None,
    source: Source | None = None,
    name: str | None = None,
    missing: Flag = False,
    limit: int | None = None,
    format: Format | None = None,  # noqa: A002  the flag's name
    out: Out = None,
) -> int:
    """Which devices: those that meet every condition, with what they run.

    A row for each device and module; a device without modules has one row. Versions that no rule orders are neither
    below nor above another; how many devices that concerns is told on standard error.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    product:
        Of this product_key.
    module:
        That report this module, in upper or lower case.
    version:
        That run exactly this version.
    below:
        That run a version of --module that is older than this one.
    above:
        That run a version of --module that is newer than this one.
    status:
        In this state.
    source:
        Of which what is known was asked, or is carried from an earlier run; or that were not drawn into the sample.
    name:
        With this device_name or iot_id.
    missing:
        With the modules that their product defines and they never reported, a row for each, instead of those reported.
    limit:
        So many rows at most; a table has at most 1,000 without it.
    format:
        How to write it: a table, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.query.devices import Selection, select_devices

    form = chosen(format, out)
    wanted = Selection(
        product_key=product, module_name=module, module_version=version, below=below, above=above,
        status=status, source=source, name=name, limit=at_least_one("--limit", limit), missing=missing,
    )  # fmt: skip
    with select_devices(run, wanted) as selected:
        note(selected.run.doubts)
        deliver(form, out, show=lambda: print_rows(selected.table, limit, brief=True), write=selected.table.write)
        if selected.uncompared:
            bounds = " and ".join(each for each in (below, above) if each is not None)
            say(f"note: {selected.uncompared:,} devices run a version that cannot be ordered against {safe(bounds)}")
        if limit is not None and selected.rows > limit:
            say(f"note: {limit:,} of {selected.rows:,} rows")
    return 0


def sql(run: Path, query: str, /, *, format: Format | None = None, out: Out = None) -> int:  # noqa: A002  the flag's name
    """Ask a run anything: one SELECT over its views fleet, devices, modules, inventory, products, missing.

    DuckDB's dialect, read-only: no other file, no network, no setting. auditor sql RUN "DESCRIBE devices" tells the
    columns.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    query:
        The SELECT.
    format:
        How to write it: a table of at most 1,000 rows, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.query.sql import query_run

    form = chosen(format, out)
    with query_run(run, query) as answer:
        note(answer.run.doubts)
        deliver(form, out, show=lambda: print_rows(answer.table), write=answer.table.write)
    return 0


def diff(
    old: Path | None = None,
    new: Path | None = None,
    /,
    *,
    last: Flag = False,
    devices: Flag = False,
    fail_on: str | None = None,
    format: Format | None = None,  # noqa: A002  the flag's name
    out: Out = None,
) -> int:
    """What changed between two runs: versions, modules and devices; never what was only not seen.

    Where a run is a sample: the share of each version before and after, and whether it changed by more than chance.

    Parameters
    ----------
    old:
        The earlier run folder; with --last a directory of runs, "audits" if none is given.
    new:
        The later run folder, or a directory of runs, whose newest is meant.
    last:
        Compare the newest run of a directory with the one of the same name before it.
    devices:
        A row for each change of each device, instead of sums by product and module.
    fail_on:
        Exit with 4 if any of these changes is found, such as downgraded,vanished; between samples, of grew,shrank.
    format:
        How to write it: a table, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.analysis.drift import diff_runs, last_two
    from auditor.cli.render_run import drift_summary, print_shares
    from auditor.runs.folder import find_run

    form = chosen(format, out)
    if last and new is None:
        old, new = last_two(Path("audits") if old is None else old)
    elif last or old is None or new is None:
        raise UsageError("give two runs, OLD and NEW, or --last and a directory of runs")
    old, new = find_run(old), find_run(new)
    if old.resolve() == new.resolve():
        raise UsageError(f"{old}: is both the old run and the new one; give two, or --last and their directory")
    wrong = _changes(fail_on)
    with diff_runs(old, new) as drift:
        counts = _counts(drift, wrong)
        note(drift.doubts)
        shares = None if devices else drift.shares
        table = drift.devices if devices else drift.modules if shares is None else shares.table
        show = (lambda: print_rows(table, brief=True)) if shares is None else (lambda: print_shares(shares))
        deliver(form, out, show=show, write=table.write)
        for line in drift_summary(drift):
            say(line)
        found = [f"{count:,} {change}" for change, count in counts.items() if count]
    if found:
        raise DriftError(f"drift that was to fail: {', '.join(found)}")
    return 0


def _counts(drift: "Drift", wanted: list[str]) -> dict[str, int]:
    """How often the changes were found that are to fail, as far as they are told between such runs."""
    told = drift.counts if drift.shares is None else drift.shares.counts
    counts = {change: getattr(told, change) for change in wanted if hasattr(told, change)}
    if wanted and not counts:
        sampled = (
            "is not told between samples, which have few devices in common; grew and shrank are, of shares"
            if drift.shares is not None
            else "is told of samples alone; of whole fleets every change of a device is"
        )
        raise UsageError(f"--fail-on {','.join(wanted)}: {sampled}")
    return counts


def _changes(given: str | None) -> list[str]:
    from auditor.analysis.drift import CHANGES
    from auditor.analysis.sample_drift import SHARE_CHANGES

    known = (*CHANGES, *SHARE_CHANGES)
    wanted = [] if given is None else [each.strip() for each in given.split(",")]
    for each in wanted:
        if each not in known:
            raise UsageError(f"--fail-on {each!r}: is none of {', '.join(known)}")
    return wanted


def verify(run: Path, /) -> int:
    """Recompute a run from its files and compare: states, counts, digests, Parquet, inventory.

    Prints what does not hold, a line each, and then exits with 1.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant.
    """
    from auditor.runs.folder import find_run
    from auditor.runs.manifest import read_manifest
    from auditor.runs.verify import verify as prove

    folder = find_run(run)
    problems = prove(folder)
    for problem in problems:
        tell(safe(problem))
    if not problems:
        say(f"{folder}: every number follows from the files; the run is {read_manifest(folder).state}")
    return 1 if problems else 0


TABLE_RUNS = 30
"""The newest so many runs, where people look at them and no other number was asked for."""


def history(
    directory: Path = Path("audits"),
    /,
    *,
    name: str | None = None,
    product: str | None = None,
    module: str | None = None,
    limit: int | None = None,
    format: Format | None = None,  # noqa: A002  the flag's name
    out: Out = None,
) -> int:
    """How versions spread from run to run: the runs of a directory, and the share of each version in them.

    A run that is not whole is marked with ~, one whose numbers are not to be relied on with !, and one that has no
    versions, as it is running or was killed, with ?.

    Parameters
    ----------
    directory:
        A directory of runs.
    name:
        Of the runs of this name; without it, of the newest run's.
    product:
        Of this product_key alone.
    module:
        Of this module alone, in upper or lower case.
    limit:
        The newest so many runs; without it 30 in a table, and all of them in other formats.
    format:
        How to write it: a table, unless the name of a file tells another.
    out:
        The file to write, instead of standard output.
    """
    from auditor.analysis.history import read_history
    from auditor.cli.render_history import print_history

    form = chosen(format, out)
    newest = limit if limit is not None or form != "table" else TABLE_RUNS
    with read_history(directory, name=name, product_key=product, module_name=module, limit=newest) as found:
        note(found.doubts)
        deliver(form, out, show=lambda: print_history(found), write=found.table.write)
        if newest != limit and len(found.runs) == newest:
            say(f"note: the newest {newest} runs at most; --limit shows more")
    return 0
