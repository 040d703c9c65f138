"""Command that demonstrates the program without an account."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_line
from auditor.cli.execution import run_with_progress
from auditor.cli.options import OUTPUT, LogFormatOption, LogLevel, require_positive
from auditor.text.formatting import safe


def demo(
    *,
    devices: int = 2000,
    runs: Annotated[int, Parameter(name="--nights")] = 3,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("audits"),
    log_level: LogLevel = "error",
    log_format: LogFormatOption = "text",
) -> int:
    """Audit a simulated fleet several times, and show the results.

    No account is needed. Between two runs updates reach more of the fleet; the last run is incremental. The simulated
    platform has a few faults, as real ones have. Then the commands that read runs are shown.

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

    log_to_stderr(log_level, log_format)
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
    _show_results(folders, out)
    print_line(f"\nThe runs are in {safe(out)}; each has inventory.csv, modules.parquet, run.json and more.")
    return result.exit_code


def _show_results(runs: list[Path], directory: Path) -> None:
    """Show the commands that read runs, and their output."""
    from importlib.util import find_spec

    from auditor.cli.commands.devices import devices, inventory
    from auditor.cli.commands.query import diff, history
    from auditor.cli.commands.report import policy, report
    from auditor.cli.demonstration import DEMO_RULES
    from auditor.cli.options import DeviceFlags, FilterFlags
    from auditor.storage.files import replace_file

    newest, rules, page = runs[-1], directory / "demo-rules.toml", directory / "demo.html"
    replace_file(rules, DEMO_RULES.encode())
    _show(lambda: inventory(newest), "inventory", newest)
    few, default = FilterFlags(limit=5), DeviceFlags(module="default")
    _show(lambda: devices(newest, filters=few, missing=True), "devices", newest, "--missing", "--limit", 5)
    if len(runs) > 1:
        _show(lambda: diff(runs[-2], newest), "diff", runs[-2], newest)
        _show(lambda: history(directory, filters=default), "history", directory, "--module", "default")
    _show(lambda: policy(newest, rules), "policy", newest, rules)
    if find_spec("jinja2"):
        _show(lambda: report(newest, out=page, rules=rules), "report", newest, "--rules", rules, "-o", page)
    else:
        print_line("\nThe report needs more packages: pip install 'auditor[report]'")


def _show(command: Callable[[], object], *words: object) -> None:
    print_line(f"\n$ auditor {shlex.join(map(str, words))}")
    sys.stdout.flush()
    command()
