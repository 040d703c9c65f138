"""`auditor simulate`: a simulated platform to practise on."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from auditor.cli.console import tell
from auditor.cli.options import at_least_one
from auditor.errors import UsageError


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
    from auditor.cli.runtime import in_loop
    from auditor.simulator.lifecycle import Life
    from auditor.simulator.standalone import Practice, serve

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
