"""Commands that read runs: inventory, devices, sql, diff, history and verify."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from auditor.cli.console import print_error, print_line
from auditor.cli.options import Flag, OutputPath, RunPath, parse_duration_flag, parse_names, require_positive
from auditor.cli.output import FormatOption, emit, print_rows, print_warnings, resolve_format
from auditor.errors import DriftError, UsageError
from auditor.models import DeviceState, Source
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.analysis.drift import Drift

FILTERS = Group("Filters", sort_key=1)

MAX_QUERY_MEMORY, MAX_QUERY_OUTPUT = 1_000_000_000, 10_000_000_000
"""Bytes of memory, and of the file that is written, of an SQL query."""

HISTORY_TABLE_RUNS = 30
"""Maximum number of runs in a table of ``history`` without --limit."""


def inventory(run: RunPath, /, *, format: FormatOption = None, out: OutputPath = None) -> int:  # noqa: A002  the flag's name
    """Count devices per product, module and version, with shares."""
    from auditor.cli.render_run import print_inventory
    from auditor.query.run import Run

    resolved = resolve_format(format, out)
    with Run(run) as opened:
        print_warnings(opened.warnings)
        emit(
            resolved,
            out,
            show=lambda: print_inventory(
                opened.manifest, opened.devices, opened.inventory(), sample=opened.sample, ages=opened.ages
            ),
            write=opened.write_inventory,
        )
    return 0


def devices(
    run: RunPath,
    /,
    *,
    product: Annotated[str | None, Parameter(group=FILTERS)] = None,
    module: Annotated[str | None, Parameter(group=FILTERS)] = None,
    version: Annotated[str | None, Parameter(name="--version", group=FILTERS)] = None,
    below: Annotated[str | None, Parameter(group=FILTERS)] = None,
    above: Annotated[str | None, Parameter(group=FILTERS)] = None,
    status: Annotated[DeviceState | None, Parameter(group=FILTERS)] = None,
    source: Annotated[Source | None, Parameter(group=FILTERS)] = None,
    name: Annotated[str | None, Parameter(group=FILTERS)] = None,
    missing: Annotated[bool, Parameter(negative=(), show_default=False, group=FILTERS)] = False,
    limit: Annotated[int | None, Parameter(group=FILTERS)] = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """List devices that match all filters, with their versions.

    Write a row for each device and module, or one row for a device without modules. Versions that cannot be compared
    are neither below nor above another; standard error says how many devices run one.

    Parameters
    ----------
    product:
        Product key.
    module:
        Name of a module that the device reports; case does not matter.
    version:
        Exact version that the device runs.
    below:
        List devices with an older version of --module.
    above:
        List devices with a newer version of --module.
    status:
        Outcome of the query.
    source:
        Where the result comes from: this run, an earlier run, or nowhere, as the device was not sampled.
    name:
        The device's device_name or iot_id.
    missing:
        List the modules that the product defines and the device never reported, instead of the reported ones.
    limit:
        Write at most INT rows; default 1,000 in a table.
    """
    from auditor.query.devices import DeviceFilter, select_devices

    resolved = resolve_format(format, out)
    filters = DeviceFilter(
        product_key=product, module_name=module, module_version=version, below=below, above=above,
        status=status, source=source, name=name, limit=require_positive("--limit", limit), missing=missing,
    )  # fmt: skip
    with select_devices(run, filters) as selected:
        print_warnings(selected.run.warnings)
        emit(resolved, out, show=lambda: print_rows(selected.table, limit, brief=True), write=selected.table.write)
        if count := selected.uncompared:
            bounds = " and ".join(each for each in (below, above) if each is not None)
            print_error(f"note: {count:,} devices run a version that cannot be compared with {safe(bounds)}")
        if limit is not None and selected.rows > limit:
            print_error(f"note: {limit:,} of {selected.rows:,} rows")
    return 0


def sql(
    run: RunPath,
    query: str,
    /,
    *,
    timeout: str = "10m",
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Query a run with SQL (read-only).

    The views are fleet, devices, modules, inventory, products and missing_modules; auditor sql RUN "DESCRIBE devices"
    lists columns. The query is one SELECT in DuckDB's dialect. It cannot read other files, use the network or change
    settings. It has 1 GB of memory, 4 GB of temporary files, and an output of 10 GB. A table shows at most 1,000 rows.

    Parameters
    ----------
    query:
        The SELECT statement.
    timeout:
        End the query after this time, such as 30s or 2h.
    """
    from auditor.query.sql import query_run

    resolved = resolve_format(format, out)
    seconds = parse_duration_flag("--timeout", timeout)
    try:
        with ExitStack() as limits:

            def prepare() -> None:
                limits.enter_context(_limited_process(seconds, timeout))

            with query_run(run, query, prepare=prepare) as result:
                print_warnings(result.run.warnings)
                emit(resolved, out, show=lambda: print_rows(result.table), write=result.table.write)
    except MemoryError:
        raise UsageError("the query fails: a value of it does not fit into 1 GB of memory") from None
    return 0


@contextmanager
def _limited_process(seconds: float, timeout: str) -> Iterator[None]:
    """Limit the memory, the output file and the remaining time of this process; DuckDB itself bounds only rows."""
    import resource
    import threading

    from auditor.cli.signals import exit_process

    def end() -> None:
        print_error(
            f"auditor: the query takes longer than {safe(timeout)}; give more time with --timeout, or select less"
        )
        exit_process(UsageError.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    sizes = {resource.RLIMIT_DATA: MAX_QUERY_MEMORY, resource.RLIMIT_FSIZE: MAX_QUERY_OUTPUT}
    before = {limit: resource.getrlimit(limit) for limit in sizes}
    for limit, size in sizes.items():
        soft, hard = before[limit]
        resource.setrlimit(limit, (size if soft == resource.RLIM_INFINITY else min(size, soft), hard))
    try:
        yield
    finally:
        timer.cancel()
        for limit, both in before.items():
            resource.setrlimit(limit, both)


def diff(
    old: Path | None = None,
    new: Path | None = None,
    /,
    *,
    last: Flag = False,
    devices: Flag = False,
    fail_on: str | None = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Compare two runs: changed versions, modules and devices.

    Devices without an answer are not counted as changed. For samples, compare the share of each version, and whether it
    changed significantly.

    Parameters
    ----------
    old:
        Earlier run folder. With --last: directory of runs, default audits.
    new:
        Later run folder, or directory of runs (uses its newest run).
    last:
        Compare the newest run of a directory with the previous one of the same name.
    devices:
        List each change of each device instead of counts by product and module.
    fail_on:
        Exit with 4 if one of these changes is found, such as downgraded,vanished; for samples: grew,shrank.
    """
    from auditor.analysis.drift import CHANGES, diff_runs, latest_pair
    from auditor.analysis.sample_drift import SHARE_CHANGES
    from auditor.cli.render_run import describe_drift, print_shares
    from auditor.runs.folder import find_run

    resolved = resolve_format(format, out)
    if last and new is None:
        old, new = latest_pair(Path("audits") if old is None else old)
    elif last or old is None or new is None:
        raise UsageError("give two runs, OLD and NEW, or --last and a directory of runs")
    old, new = find_run(old), find_run(new)
    if old.resolve() == new.resolve():
        raise UsageError(f"{old}: is both the old and the new run; give two runs, or --last and their directory")
    changes = parse_names("--fail-on", fail_on, (*CHANGES, *SHARE_CHANGES))
    with diff_runs(old, new) as drift:
        counts = _count_changes(drift, changes)
        print_warnings(drift.warnings)
        shares = None if devices else drift.shares
        table = drift.devices if devices else drift.modules if shares is None else shares.table
        show = (lambda: print_rows(table, brief=True)) if shares is None else (lambda: print_shares(shares))
        emit(resolved, out, show=show, write=table.write)
        for line in describe_drift(drift):
            print_error(line)
        matched = [f"{count:,} {change}" for change, count in counts.items() if count]
    if matched:
        raise DriftError(f"--fail-on matched: {', '.join(matched)}")
    return 0


def _count_changes(drift: "Drift", changes: list[str]) -> dict[str, int]:
    """Return the number of each change that --fail-on names, if such runs can be compared by it."""
    available = drift.counts if drift.shares is None else drift.shares.counts
    counts = {change: getattr(available, change) for change in changes if hasattr(available, change)}
    if changes and not counts:
        reason = (
            "samples have few devices in common; use grew and shrank, which compare shares"
            if drift.shares is not None
            else "only samples have it; complete runs have every change of a device"
        )
        raise UsageError(f"--fail-on {','.join(changes)}: {reason}")
    return counts


def history(
    directory: Path = Path("audits"),
    /,
    *,
    name: Annotated[str | None, Parameter(group=FILTERS)] = None,
    product: Annotated[str | None, Parameter(group=FILTERS)] = None,
    module: Annotated[str | None, Parameter(group=FILTERS)] = None,
    limit: Annotated[int | None, Parameter(group=FILTERS)] = None,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Show the runs of a directory and the share of each version over time.

    Incomplete runs are marked with ~, damaged ones with !, and unsealed ones, which have no versions yet, with ?.

    Parameters
    ----------
    directory:
        Directory of runs.
    name:
        Name of the runs; default: the newest run's.
    product:
        Product key.
    module:
        Name of a module; case does not matter.
    limit:
        Show the newest INT runs; default 30 in a table, all in other formats.
    """
    from auditor.analysis.history import read_history
    from auditor.cli.render_history import print_history

    resolved = resolve_format(format, out)
    newest = limit if limit is not None or resolved != "table" else HISTORY_TABLE_RUNS
    with read_history(directory, name=name, product_key=product, module_name=module, limit=newest) as found:
        print_warnings(found.warnings)
        emit(resolved, out, show=lambda: print_history(found), write=found.table.write)
        if newest != limit and len(found.runs) == newest:
            print_error(f"note: the newest {newest} runs; --limit shows more")
    return 0


def verify(run: RunPath, /) -> int:
    """Verify a run's files and numbers.

    Recompute its states, counts, digests, Parquet files and inventory, and compare. Print each difference and exit
    with 1 if there is one.
    """
    from auditor.runs.folder import find_run
    from auditor.runs.manifest import read_manifest
    from auditor.runs.verify import verify_run

    folder = find_run(run)
    problems = verify_run(folder)
    for problem in problems:
        print_line(safe(problem))
    if not problems:
        print_error(f"{safe(folder)}: verified; the run is {read_manifest(folder).state}")
    return 1 if problems else 0
