"""Commands that need no account: the demonstration and the simulated platform."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from auditor.commands.options import LogLevel, at_least_one, audit
from auditor.terminal import tell


def demo(*, devices: int = 4000, out: Path = Path("audits"), log_level: LogLevel = "error") -> int:
    """Show all of it without an account: a simulated platform with a few faults, an audit, the inventory.

    Parameters
    ----------
    devices:
        Devices of the simulated fleet.
    out:
        Make the run folder in this directory.
    log_level:
        What is logged to standard error.
    """
    from auditor.display import print_inventory
    from auditor.inventory.queries import Run
    from auditor.practice import demonstrate

    at_least_one("--devices", devices)
    result = audit(lambda watch, stop: demonstrate(devices, out, watch, stop), log_level)
    with Run(result.folder) as opened:
        print_inventory(opened.manifest, opened.devices, opened.inventory())
    tell(f"\nThe run lies in {result.folder}: inventory.csv, modules.parquet, run.json and more.")
    return result.exit_code


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
    write: Path | None = None,
) -> int:
    """A platform to practise on, as a server: as strict as the real one, until interrupted.

    Prints its endpoint, access key id and secret.

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
        The account's quota in calls a second; 0 for none.
    window:
        How it counts the quota: in calendar seconds, in the last second, or by a token bucket.
    latency:
        The least and the most milliseconds that an answer takes.
    faults:
        The part of the requests that meet a fault: resets, 5xx, HTML, cut bodies, silence and more.
    write:
        Write simulated.toml, its secret and its fleet file into this folder, ready for auditor run.
    """
    from auditor.practice import Practice, serve
    from auditor.process import in_loop

    practice = Practice(devices, products, seed, dialect, per_second or None, window, latency, faults)
    in_loop(lambda: serve(practice, port, write, tell))
    return 0
