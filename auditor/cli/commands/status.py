"""The command status: how the last run ended, and what to do next."""

from pathlib import Path

from auditor.cli.console import print_line
from auditor.cli.options import LocalTime


def status(directory: Path = Path("audits"), /, *, name: str | None = None, local_time: LocalTime = False) -> int:
    """Describe the last run of a directory: how it ended, why, what changed, and what to do next.

    Parameters
    ----------
    directory:
        Directory of runs, or a run folder.
    name:
        Name of the runs; default: the newest run's.
    """
    from auditor.cli.render_runs import describe_status

    for line in describe_status(directory, name, local_time=local_time):
        print_line(line)
    return 0
