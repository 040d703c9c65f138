"""Commands that need no account: the demonstration and the simulated platform."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from auditor.cli.console import say, tell
from auditor.cli.execution import audit
from auditor.cli.options import LogLevel, at_least_one
from auditor.text.formatting import safe


def demo(*, devices: int = 2000, nights: int = 3, out: Path = Path("audits"), log_level: LogLevel = "error") -> int:
    """Show all of it without an account: a simulated fleet is audited night after night, while updates reach it.

    The last night asks only devices that can have changed, and carries what is known of the others.
    The platform has a few faults, as real ones have. Then the commands that read runs are shown at work.

    Parameters
    ----------
    devices:
        Devices of the simulated fleet.
    nights:
        Audits, each of them a simulated day after the one before.
    out:
        Make the run folders in this directory.
    log_level:
        What is logged to standard error.
    """
    from auditor.cli.demonstration import demonstrate

    at_least_one("--devices", devices, "devices")
    at_least_one("--nights", nights, "nights")
    runs: list[Path] = []
    for day in range(nights):
        since = "last" if 0 < day == nights - 1 else None
        say(f"night {day + 1} of {nights}{'' if since is None else ', only who can have changed since the last'}")
        result = audit(partial(demonstrate, devices, day, out, since=since), log_level)
        if result.exit_code > 1:
            return result.exit_code
        runs.append(result.folder)
    _read(runs, out)
    tell(f"\nThe runs lie in {safe(out)}: inventory.csv, modules.parquet, run.json and more of each night.")
    return result.exit_code


def _read(runs: list[Path], directory: Path) -> None:
    """Shows the commands that read runs, and what they print."""
    from importlib.util import find_spec

    from auditor.cli.commands.query import devices, diff, history, inventory
    from auditor.cli.commands.report import policy, report
    from auditor.cli.demonstration import DEMO_RULES

    newest, rules, page = runs[-1], directory / "demo-rules.toml", directory / "demo.html"
    rules.write_text(DEMO_RULES, encoding="utf-8")
    _show(lambda: inventory(newest), "inventory", newest)
    _show(lambda: devices(newest, missing=True, limit=5), "devices", newest, "--missing", "--limit", 5)
    if len(runs) > 1:
        _show(lambda: diff(runs[-2], newest), "diff", runs[-2], newest)
        _show(lambda: history(directory, module="default"), "history", directory, "--module", "default")
    _show(lambda: policy(newest, rules), "policy", newest, rules)
    if find_spec("altair") and find_spec("jinja2"):
        _show(lambda: report(newest, out=page, rules=rules), "report", newest, "--rules", rules, "-o", page)
    else:
        tell("\nThe report needs what make demo installs: pip install 'auditor[report]'")


def _show(command: Callable[[], object], *words: object) -> None:
    tell(f"\n$ auditor {shlex.join(map(str, words))}")
    sys.stdout.flush()
    command()
