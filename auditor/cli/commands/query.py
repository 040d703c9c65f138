"""Commands that read runs: sql, diff, history and verify."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_line, print_note, print_notes
from auditor.cli.options import (
    FILTERS,
    ChangeOptions,
    DeviceOptions,
    Flag,
    GroupBy,
    LocalTime,
    OutputPath,
    ReadPath,
    RunAddress,
    build_filter,
    describe_older_run,
    fail_on_differences,
    note_newer,
    note_unsuccessful,
    parse_duration_flag,
    parse_names,
    read_from,
    split_names,
)
from auditor.cli.output import (
    Format,
    FormatOption,
    describe_starts,
    emit,
    print_rows,
    print_warnings,
    resolve_format,
    table_zone,
)
from auditor.errors import UsageError
from auditor.text.formatting import safe
from auditor.text.time_zones import show_times

if TYPE_CHECKING:
    from auditor.analysis.drift import Drift
    from auditor.query.filters import DeviceFilter
    from auditor.runs.manifest import Manifest
    from auditor.storage.tables import ResultTable

MAX_QUERY_MEMORY, MAX_QUERY_OUTPUT = 1_000_000_000, 10_000_000_000
"""Bytes of memory, and of the file that is written, of an SQL query."""

MAX_STATEMENT = 1_000_000
"""Characters of an SQL statement that is read from a file or standard input."""

HISTORY_TABLE_RUNS = 30
"""Maximum number of runs in a table of ``history`` without --limit."""


def sql(
    run: ReadPath | None = None,
    query: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    runs: Path | None = None,
    dataset: Path | None = None,
    file: Annotated[Path | None, Parameter(alias="-f")] = None,
    timeout: str = "10m",
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Query a run, all runs of a directory, or published runs, with SQL (read-only).

    The views are fleet, devices, modules, device_modules, inventory, products, missing_modules, firmware, jobs, tasks
    and device_releases; auditor sql RUN "DESCRIBE devices" lists columns. With --runs they are runs, changes, fleet,
    devices, modules, inventory, firmware, jobs, tasks and device_releases, with the column run. With --dataset they are
    the published tables runs, devices, modules, inventory, rollouts and changes. version_below(a, b) and
    version_above(a, b) compare versions, and version_rank(product_key, module_name, module_version) numbers them.
    The query is one SELECT in DuckDB's dialect. It cannot read other files, use the network or change settings. It
    has 1 GB of memory, 4 GB of temporary files, and an output of 10 GB. A table shows at most 1,000 rows.

    Parameters
    ----------
    query:
        The SELECT statement; - reads it from standard input.
    runs:
        Query all runs of this directory that have the name of its newest one.
    dataset:
        Query the runs that were published to this directory, or fetched into it.
    file:
        Read the statement from this file.
    timeout:
        End the query after this time, such as 30s or 2h.
    """
    from auditor.query.sql import query_run, query_runs

    if (runs or dataset) is not None and run is not None and query is None and file is None:
        run, query = None, str(run)  # the only argument is the statement
    if sum(each is not None for each in (run, runs, dataset)) != 1 or (query is None) == (file is None):
        what = "RUN, --runs DIRECTORY or --dataset DIRECTORY"
        raise UsageError(f"give {what}, and a statement; -f FILE has the statement too")
    statement = _read_statement(query, file)
    resolved = resolve_format(format, out)
    seconds = parse_duration_flag("--timeout", timeout)
    try:
        with ExitStack() as limits:

            def prepare() -> None:
                limits.enter_context(_limited_process(seconds, timeout))

            if runs is not None:
                with query_runs(runs, statement, prepare=prepare) as of_runs:
                    print_warnings(of_runs.warnings)
                    emit(resolved, out, show=lambda: print_rows(of_runs.table), write=of_runs.table.write)
            elif dataset is not None:
                from auditor.publish.dataset_reader import query_dataset

                with query_dataset(dataset, statement, prepare=prepare) as published:
                    emit(resolved, out, show=lambda: print_rows(published.table), write=published.table.write)
            elif run is not None:
                with query_run(read_from(run), statement, prepare=prepare) as result:
                    print_warnings(result.run.warnings)
                    emit(resolved, out, show=lambda: print_rows(result.table), write=result.table.write)
    except MemoryError:
        raise UsageError("the query fails: a value of it does not fit into 1 GB of memory") from None
    return 0


def _read_statement(query: str | None, file: Path | None) -> str:
    """Return the statement itself, or that of standard input or a file."""
    if file is None and query != "-":
        return query or ""
    try:
        if file is None or str(file) == "-":
            return sys.stdin.read(MAX_STATEMENT)
        with file.open(encoding="utf-8") as opened:
            return opened.read(MAX_STATEMENT)
    except OSError as error:
        raise UsageError(f"{file or 'standard input'}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file or 'standard input'}: is not UTF-8 text") from None


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
    since: str | None = None,
    devices: Flag = False,
    all_: Annotated[Flag, Parameter(name="--all")] = False,
    filters: ChangeOptions = None,
    changed: Annotated[str | None, Parameter(group=FILTERS)] = None,
    group_by: GroupBy = None,
    fail_on: str | None = None,
    local_time: LocalTime = False,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Compare two runs: changed versions, modules and devices, the largest changes first.

    Devices without an answer are not counted as changed. For samples, compare the share of each version, and whether it
    changed significantly.

    Filters are about devices as the newer run has them, or the older one if only that lists them. With --module, only
    changes of that module count. With --group-by, count changes for each site, or whatever is named: columns of
    changes (such as module_name, new_version), product_name, device_status, or attributes.

    Parameters
    ----------
    old:
        Earlier run folder. With --last and --since: directory of runs, default audits.
    new:
        Later run folder, or directory of runs (uses its newest successful run of the whole fleet).
    last:
        Compare the newest run of a directory with the previous one of the same name.
    since:
        Compare the newest run of a directory with the one of monday, yesterday, 2026-11-23, 7d (days ago), last~3 or a
        folder, and count the changes from version to version. The older run may have been deleted by prune.
    devices:
        List each change of each device instead of counts by product and module.
    all_:
        List the modules that did not change, too.
    changed:
        Show only these changes, such as downgraded,vanished.
    fail_on:
        Exit with 4 if one of these changes is found, such as downgraded,vanished; for samples: grew,shrank.
    """
    from auditor.analysis.device_selection import NET_CHANGES
    from auditor.analysis.drift import CHANGES, latest_pair
    from auditor.analysis.sample_drift import SHARE_CHANGES
    from auditor.runs.folder import DEFAULT_DIRECTORY, RunCatalog, StoredRun
    from auditor.runs.manifest import read_manifest

    options = _DiffOptions(
        criteria=build_filter(filters),
        groups=split_names(group_by),
        changed=parse_names("--changed", changed, CHANGES if since is None else NET_CHANGES),
        fail_on=parse_names("--fail-on", fail_on, (*CHANGES, *SHARE_CHANGES)),
        devices=devices,
        all_=all_,
        format_=resolve_format(format, out),
        out=out,
        local_time=local_time,
    )
    if devices and options.groups:
        raise UsageError("--devices lists changes, and --group-by counts them: give one of them")
    if since is not None:
        if last or new is not None or all_:
            raise UsageError("give --since and a directory of runs, without --last, --all or a second run")
        return _diff_since(old or DEFAULT_DIRECTORY, since, options)
    if last and new is None:
        directory = old or DEFAULT_DIRECTORY
        pair = latest_pair(directory)
        newer = StoredRun(read_manifest(pair[1]), pair[1])
        catalog = RunCatalog(directory)
        note_newer(catalog, newer, "comparing")
        note_unsuccessful(catalog, newer)
        return _diff_runs(*pair, options)
    if last or old is None or new is None:
        raise UsageError("give two runs, OLD and NEW, or --last or --since and a directory of runs")
    return _diff_runs(old, new, options)


@dataclass(frozen=True, slots=True)
class _DiffOptions:
    """What to compare, and how to show it: the flags of ``diff`` other than its runs."""

    criteria: "DeviceFilter"
    groups: tuple[str, ...]
    changed: list[str]
    fail_on: list[str]
    devices: bool
    all_: bool
    format_: Format
    out: Path | None
    local_time: bool


def _diff_runs(old: Path, new: Path, options: _DiffOptions) -> int:
    """Print or write what differs between two runs."""
    from auditor.analysis.drift import diff_runs
    from auditor.cli.render_run import describe_changed_modules, describe_drift, print_shares
    from auditor.runs.folder import find_run

    old, new = find_run(old), read_from(new)
    if old.resolve() == new.resolve():
        raise UsageError(f"{old}: is both the old and the new run; give two runs, or --last and their directory")
    with diff_runs(old, new, criteria=options.criteria, changes=options.changed, group_by=options.groups) as drift:
        counts = _count_changes(drift, options.fail_on)
        print_warnings(drift.warnings)
        shares = None if options.devices else drift.shares
        modules = drift.modules if options.all_ else drift.changed_modules
        found = drift.devices if options.devices else modules if shares is None else shares.table
        show = None if shares is None else partial(print_shares, shares)
        if options.format_ == "table" and found in (drift.modules, drift.changed_modules) and drift.groups is None:
            print_error(describe_changed_modules(drift))
        _emit_changes(found if drift.groups is None else drift.groups, options, show)
        _describe_runs(describe_drift(drift), drift.old.manifest, drift.new.manifest, options)
    fail_on_differences(counts)
    return 0


def _diff_since(directory: Path, since: str, options: _DiffOptions) -> int:
    """Print or write what changed in a directory of runs since one of them."""
    from auditor.analysis.device_selection import NET_CHANGES
    from auditor.analysis.net_changes import read_changes_since
    from auditor.cli.render_runs import describe_net_changes
    from auditor.runs.folder import RunCatalog

    if unknown := [change for change in options.fail_on if change not in NET_CHANGES]:
        raise UsageError(f"--fail-on {','.join(unknown)}: --since counts {', '.join(NET_CHANGES)}")
    with read_changes_since(
        directory, since, criteria=options.criteria, changes=options.changed, group_by=options.groups
    ) as found:
        catalog = RunCatalog(directory)
        note_newer(catalog, found.new, "comparing")
        note_unsuccessful(catalog, found.new)
        print_warnings(found.warnings)
        table = found.devices if options.devices else found.versions
        _emit_changes(table if found.groups is None else found.groups, options)
        _describe_runs(describe_net_changes(found), found.old.manifest, found.new.manifest, options)
        counts = {change: found.counts[change] for change in options.fail_on}
    fail_on_differences(counts)
    return 0


def _emit_changes(table: "ResultTable", options: _DiffOptions, show: Callable[[], None] | None = None) -> None:
    """Print or write changes, and say how many --limit leaves out; ``show`` prints them, if not as rows."""
    from auditor.query.filters import arrange

    limit, arranged = options.criteria.limit, arrange(table, options.criteria)
    show_rows = partial(print_rows, arranged, limit, brief=True)
    emit(options.format_, options.out, show=show or show_rows, write=arranged.write)
    if limit is not None and (rows := table.count_rows()) > limit:
        print_note(f"{limit:,} of {rows:,} rows")


def _describe_runs(sentences: Iterable[str], old: "Manifest", new: "Manifest", options: _DiffOptions) -> None:
    """Print sentences about a comparison, and when its runs started, in the zone of the newer one."""
    zone = table_zone(new, local_time=options.local_time)
    for line in (*sentences, *describe_starts((old, new), zone)):
        print_error(show_times(line, zone))


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
    filters: DeviceOptions = None,
    group_by: GroupBy = None,
    limit: Annotated[int | None, Parameter(group=FILTERS)] = None,
    rollouts: Flag = False,
    local_time: LocalTime = False,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Show the runs of a directory and the share of each version over time.

    Incomplete runs are marked with ~, damaged ones with !, and unsealed ones, which have no versions yet, with ?. With
    filters, shares are of the devices that match all of them, by what each run says of a device. With --group-by,
    count them for each site, or whatever is named: product_name, device_status, or attributes.

    Parameters
    ----------
    directory:
        Directory of runs.
    name:
        Name of the runs; default: the newest run's.
    limit:
        Show the newest INT runs; default 30 in a table and with --rollouts, all in other formats.
    rollouts:
        List the rollouts instead: for each product's module the target version, its share and change a day, the state,
        and the devices behind.
    """
    from auditor.analysis.history import read_history
    from auditor.analysis.rollouts import (
        MAX_ROLLOUTS,
        MAX_RUNS,
        MAX_WRITTEN_ROLLOUTS,
        newest_of_fleet,
        rollout_table,
        rollouts_of,
    )
    from auditor.cli.render_history import print_history, print_rollouts
    from auditor.runs.folder import RunCatalog
    from auditor.runs.manifest import read_manifest

    resolved = resolve_format(format, out)
    newest = limit if limit is not None or resolved != "table" else HISTORY_TABLE_RUNS
    criteria, groups = build_filter(filters), split_names(group_by)
    if rollouts:
        if groups:
            raise UsageError("--rollouts is about products and modules: leave out --group-by")
        newest = MAX_RUNS if limit is None else limit
    until = newest_of_fleet(directory, name) if rollouts else None
    with read_history(directory, name=name, criteria=criteria, group_by=groups, limit=newest, until=until) as found:
        last = None if until is None else RunCatalog(directory).latest(found.name)
        if until is not None and last is not None and until.folder != last.folder:
            print_notes([describe_older_run(until, last)])
        print_warnings(found.warnings)
        zone = table_zone(read_manifest(found.runs[-1].folder), local_time=local_time)
        if rollouts:
            current = rollouts_of(found, limit=MAX_ROLLOUTS if resolved == "table" else MAX_WRITTEN_ROLLOUTS)
            if len(current.rollouts) < current.count and resolved != "table":
                print_note(f"the {len(current.rollouts):,} of {current.count:,} rollouts with the most devices")
            emit(resolved, out, show=lambda: print_rollouts(current), write=rollout_table(found, current).write)
        else:
            show = (lambda: print_rows(found.table, brief=True)) if groups else (lambda: print_history(found, zone))
            emit(resolved, out, show=show, write=found.table.write)
        if newest != limit and len(found.runs) == newest:
            print_note(f"the newest {newest} runs; --limit shows more")
    return 0


def verify(run: RunAddress, /) -> int:
    """Verify a run's files and numbers.

    Recompute its states, counts, digests, Parquet files and inventory, and compare. Print each difference and exit
    with 1 if there is one. If the run was cut, fetch its sealed files first.
    """
    from auditor.cli.commands.cluster import is_cluster_run, verify_cut_run
    from auditor.runs.folder import find_run
    from auditor.runs.manifest import read_manifest
    from auditor.runs.verify import verify_run

    if is_cluster_run(run):
        return verify_cut_run(run)
    folder = find_run(Path(run))
    problems = verify_run(folder)
    for problem in problems:
        print_line(safe(problem))
    if not problems:
        print_error(f"{safe(folder)}: verified; the run is {read_manifest(folder).state}")
    return 1 if problems else 0
