"""The commands runs and status: the runs of a directory, and how the last one ended."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from auditor.cli.console import print_line, print_notes
from auditor.cli.options import OUTPUT, LocalTime, OutputPath, require_positive
from auditor.cli.output import FormatOption, emit, resolve_format, table_zone

MAX_TABLE_RUNS = 30
"""Runs of a table without --limit."""


def runs(
    directory: Path = Path("audits"),
    /,
    *,
    name: str | None = None,
    limit: Annotated[int | None, Parameter(group=OUTPUT)] = None,
    local_time: LocalTime = False,
    format: FormatOption = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """List the runs of a directory, the newest first, and why each ended as it did.

    Runs that prune has deleted are listed if their changes are kept.

    Parameters
    ----------
    directory:
        Directory of runs.
    name:
        Name of the runs; default: all.
    limit:
        List the newest INT runs; default 30 in a table, all in other formats.
    """
    from auditor.analysis.run_list import read_runs
    from auditor.cli.render_runs import print_runs

    resolved = resolve_format(format, out)
    newest = require_positive("--limit", limit, "runs")
    newest = MAX_TABLE_RUNS if newest is None and resolved == "table" else newest
    with read_runs(directory, name=name, limit=newest) as found:
        print_notes(found.unreadable)
        zone = table_zone(found.runs[0].manifest, local_time=local_time)
        emit(resolved, out, show=lambda: print_runs(found.runs, zone), write=found.table.write)
        if found.count > len(found.runs):
            print_notes([f"the newest {len(found.runs):,} of {found.count:,} runs; --limit shows more"])
    return 0


def status(directory: str = "audits", /, *, name: str | None = None, local_time: LocalTime = False) -> int:
    """Describe the last run of a directory: how it ended, why, what changed, and what to do next.

    If the run was cut, print its shards: silent ones first, then by the age of their last checkpoint.

    Parameters
    ----------
    directory:
        Directory of runs, a run folder, or the address of a run that was cut.
    name:
        Name of the runs; default: the newest run's.
    """
    from auditor.cli.commands.cluster import is_cluster_run, print_shards
    from auditor.cli.render_runs import describe_status

    if is_cluster_run(directory):
        return print_shards(directory)
    for line in describe_status(Path(directory), name, local_time=local_time):
        print_line(line)
    return 0
