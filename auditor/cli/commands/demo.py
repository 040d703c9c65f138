"""Command that demonstrates the program without an account."""

import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_line, print_note
from auditor.cli.execution import run_with_progress
from auditor.cli.options import OUTPUT, LogFormatOption, LogLevel, ProgressOption, require_positive
from auditor.text.extras import describe_extra
from auditor.text.formatting import safe
from auditor.text.shell import quote_path


def demo(
    *,
    devices: int = 2000,
    runs: Annotated[int, Parameter(name="--nights")] = 3,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("audits"),
    log_level: LogLevel = "error",
    log_format: LogFormatOption = "text",
    progress: ProgressOption = "auto",
) -> int:
    """Audit a simulated fleet several times, and write a report.

    No account is needed. Between two runs updates reach more of the fleet; the last run is incremental. The simulated
    platform has a few faults, as real ones have. The end is the page to open, and three commands to try.

    Parameters
    ----------
    devices:
        Number of devices of the fleet.
    runs:
        Number of runs, one simulated night after the other.
    out:
        Create the run folders in this directory.
    """
    from auditor.cli.demonstration import run_demonstration
    from auditor.cli.runtime import log_to_stderr

    log_to_stderr(log_level, log_format, progress)
    require_positive("--devices", devices, "devices")
    require_positive("--nights", runs, "nights")
    folders: list[Path] = []
    for day in range(runs):
        since = "last" if 0 < day == runs - 1 else None
        print_error(f"run {day + 1} of {runs}{'' if since is None else ', incremental'}")
        result = run_with_progress(partial(run_demonstration, devices, day, out, since=since))
        if result.exit_code > 1:
            return result.exit_code
        folders.append(result.folder)
    _print_next_steps(folders, out)
    return result.exit_code


def _print_next_steps(runs: list[Path], directory: Path) -> None:
    """Write the report; print what to open, and three commands to try."""
    from importlib.util import find_spec

    from auditor.cli.commands.report import report
    from auditor.cli.demonstration import DEMO_RULES
    from auditor.storage.files import replace_file

    rules = directory / "demo-rules.toml"
    replace_file(rules, DEMO_RULES.encode())
    if find_spec("jinja2"):
        print_line("\nOpen in a browser:")
        sys.stdout.flush()
        report(runs[-1], out=directory / "demo.html", rules=rules)
    else:
        print_line(f"\nThe report needs more packages: {describe_extra('report')}")
    print_line("\nTry:")
    program, folder = _program(), quote_path(directory)
    for words, meaning in (
        (f"inventory {folder} --module default", "versions in use"),
        (f"diff {folder} --since last~{len(runs) - 1}", "changes since the first run")
        if len(runs) > 1
        else (f"status {folder}", "how the run ended"),
        (f"policy {folder} {quote_path(rules)}", "violated rules"),
    ):
        print_line(f"  {program} {words}  # {meaning}")
    beside = Path(sys.executable).parent / "auditor"
    if program != beside.name and beside.is_file() and find_spec("jinja2"):
        path = f'export PATH={shlex.quote(safe(beside.parent))}:"$PATH"'
        print_note(f"for the commands in the report, let the shell find auditor: {path}")


def _program() -> str:
    """Return how a shell starts this program."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(safe(sys.executable))} -m auditor"
    found = shutil.which(started.name)  # which may be another installation
    is_found = found is not None and started.exists() and started.samefile(found)
    return started.name if is_found else shlex.quote(safe(started))
