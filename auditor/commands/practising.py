"""Commands that need no account: the demonstration and the simulated platform."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from auditor.commands.options import LogLevel, at_least_one, audit
from auditor.errors import UsageError
from auditor.terminal import safe, say, tell


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
    from auditor.practice import demonstrate

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

    from auditor.commands.history import history
    from auditor.commands.policies import policy
    from auditor.commands.reports import report
    from auditor.commands.runs import devices, diff, inventory
    from auditor.practice import DEMO_RULES

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


def simulate(
    *,
    port: int = 8686,
    devices: int = 10_000,
    products: int = 4,
    seed: int = 0,
    dialect: Literal["tuya", "alibaba"] = "tuya",
    per_second: float | None = 10.0,
    window: Literal["fixed", "sliding", "bucket"] = "sliding",
    latency: Annotated[tuple[float, float], Parameter(negative=())] = (20.0, 80.0),
    faults: float = 0.0,
    day: int = 0,
    connecting: float = 0.2,
    always_online: float = 0.7,
    restarting: float = 0.0,
    offline_reports: float = 0.0,
    accounts: int = 1,
    register: float = 0.0,
    remove: float = 0.0,
    fleet: Literal["file", "products"] = "file",
    write: Path | None = None,
) -> int:
    """A platform to practise on, as a server: as strict as the real one, until interrupted.

    Prints its endpoint, access key id and secret, of each account if there are several.

    Parameters
    ----------
    port:
        Where it listens, on this machine only; 0 takes a free port.
    devices:
        Devices of its fleet; some are missing, silent, or have more than 200 modules.
    products:
        Products that the devices belong to.
    seed:
        Of the fleet, the faults and the latency.
    dialect:
        How it spells its answers.
    per_second:
        The account's quota for ListOTAModuleVersionsByDevice in calls a second; 0 for none for any operation.
    window:
        How it counts the quota: in calendar seconds, in the last second, or by a token bucket.
    latency:
        The least and the most milliseconds that an answer takes.
    faults:
        The part of the requests that meet a fault: resets, 5xx, HTML, cut bodies, silence and more.
    day:
        The same fleet so many days later: updates reach more of its devices each day, and a few are rolled back.
        Devices report that when they connect, or as the next four options say.
    connecting:
        The part of the devices that connects on a day, of those that are not always online.
    always_online:
        The part of the devices that is always online, and reports new versions without connecting anew.
    restarting:
        The part of those that reports new versions only when it restarts, as often as the others connect.
    offline_reports:
        The part of the devices that reports new versions while it is offline, so that no state tells of it.
    accounts:
        Accounts, each with a fleet of its own, and all of the same size.
    register:
        Devices a second that are registered while a fleet is listed.
    remove:
        Devices a second that are removed while a fleet is listed.
    fleet:
        What the written settings say: a fleet file, or all products of the account.
    write:
        Write simulated.toml, its secret and its fleet file into this folder, ready for auditor run.
    """
    from auditor.practice import Practice, serve
    from auditor.process import in_loop
    from auditor.simulator import Life

    at_least_one("--accounts", accounts, "accounts")
    try:
        life = Life(connecting, always_online, restarting, offline_reports)
    except ValueError as error:
        raise UsageError(str(error)) from error
    practice = Practice(
        devices,
        products,
        seed,
        dialect,
        per_second or None,
        window,
        latency,
        faults,
        day,
        accounts,
        register,
        remove,
        fleet,
        life,
    )
    in_loop(lambda: serve(practice, port, write, tell))
    return 0
