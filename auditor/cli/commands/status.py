"""The command status: how the last run ended, and what to do next."""

from pathlib import Path

from auditor.cli.console import print_line
from auditor.cli.options import LocalTime


def status(directory: str = "audits", /, *, name: str | None = None, local_time: LocalTime = False) -> int:
    """Describe the last run of a directory: how it ended, why, what changed, and what to do next.

    Of a run that was cut, print its shards: silent ones first, then by the age of their last checkpoint.

    Parameters
    ----------
    directory:
        Directory of runs, a run folder, or the address of a run that was cut.
    name:
        Name of the runs; default: the newest run's.
    """
    from auditor.cli.commands.cluster import print_shards
    from auditor.cli.render_runs import describe_status
    from auditor.runs.folder import is_cut_run

    if is_cut_run(directory):
        return print_shards(directory)
    for line in describe_status(Path(directory), name, local_time=local_time):
        print_line(line)
    return 0
