"""Command that starts a simulated platform."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from auditor.cli.console import print_line
from auditor.cli.options import require_positive
from auditor.errors import UsageError
from auditor.text.extras import describe_extra

PLATFORM = Group("Platform", sort_key=1)
FLEET = Group("Fleet", sort_key=2)
LIFECYCLE = Group("How devices connect and report versions (fractions from 0 to 1)", sort_key=3)
FORMS = Group("Forms of answers, where documents and samples differ", sort_key=4)

# The same as in `auditor.simulator.forms`, which is loaded only if a platform starts.
TimeForm = Literal[
    "text", "iso", "offset", "milliseconds", "digits", "seconds", "unreadable", "empty", "null", "absent", "mixed"
]
MAX_ZONE_HOURS = 14


def simulate(
    *,
    port: Annotated[int, Parameter(group=PLATFORM)] = 8686,
    dialect: Annotated[Literal["tuya", "alibaba"], Parameter(group=PLATFORM)] = "tuya",
    accounts: Annotated[int, Parameter(group=PLATFORM)] = 1,
    per_second: Annotated[float | None, Parameter(group=PLATFORM)] = 10.0,
    window: Annotated[Literal["fixed", "sliding", "bucket"], Parameter(group=PLATFORM)] = "sliding",
    latency: Annotated[tuple[float, float], Parameter(negative=(), group=PLATFORM)] = (20.0, 80.0),
    faults: Annotated[float, Parameter(group=PLATFORM)] = 0.0,
    index_lag: Annotated[float | None, Parameter(group=PLATFORM)] = None,
    devices: Annotated[int, Parameter(group=FLEET)] = 10_000,
    products: Annotated[int, Parameter(group=FLEET)] = 4,
    seed: Annotated[int, Parameter(group=FLEET)] = 0,
    day: Annotated[int, Parameter(group=FLEET)] = 0,
    register: Annotated[float, Parameter(group=FLEET)] = 0.0,
    remove: Annotated[float, Parameter(group=FLEET)] = 0.0,
    changes: Annotated[float, Parameter(group=FLEET)] = 0.0,
    connecting: Annotated[float, Parameter(group=LIFECYCLE)] = 0.2,
    always_online: Annotated[float, Parameter(group=LIFECYCLE)] = 0.7,
    restarting: Annotated[float, Parameter(group=LIFECYCLE)] = 0.0,
    offline_reports: Annotated[float, Parameter(group=LIFECYCLE)] = 0.0,
    last_online: Annotated[TimeForm, Parameter(group=FORMS)] = "text",
    timestamp: Annotated[TimeForm, Parameter(group=FORMS)] = "milliseconds",
    utc: Annotated[TimeForm, Parameter(group=FORMS)] = "iso",
    zone: Annotated[float, Parameter(group=FORMS)] = 8.0,
    scalars: Annotated[Literal["typed", "text"], Parameter(group=FORMS)] = "typed",
    arrays: Annotated[Literal["documented", "bare", "wrapped"], Parameter(group=FORMS)] = "documented",
    empty: Annotated[Literal["array", "null", "object", "none"], Parameter(group=FORMS)] = "array",
    unused: Annotated[Literal["absent", "null", "text"], Parameter(group=FORMS)] = "absent",
    fleet: Literal["file", "products"] = "file",
    write: Path | None = None,
) -> int:
    """Start a simulated platform (Ctrl-C to stop).

    It is as strict as the real one. Print the endpoint, access key id and secret of each account.

    Parameters
    ----------
    port:
        Listen on this port of this machine; 0 uses a free port.
    dialect:
        Spell answers like this platform.
    accounts:
        Number of accounts, each with a fleet of its own.
    per_second:
        Quota of each account for ListOTAModuleVersionsByDevice, in calls a second; 0 disables all quotas.
    window:
        Count the quota in calendar seconds, in the last second, or with a token bucket.
    latency:
        Minimum and maximum latency of an answer, in milliseconds.
    faults:
        Fraction of requests with a fault: resets, 5xx, HTML, incomplete bodies, no answer, and more.
    index_lag:
        Answer QueryDeviceBySQL, from an index that is this many seconds behind the devices. Needs the extra simulator.
    devices:
        Number of devices of each account. Some do not exist, report nothing, or have more than 200 modules.
    products:
        Number of products.
    seed:
        Random seed of fleet, faults and latency.
    day:
        Age of the fleet in days. Each day updates reach more devices, and a few are rolled back.
    register:
        Devices per second that are registered while a fleet is listed.
    remove:
        Devices per second that are removed while a fleet is listed.
    changes:
        Fraction of the devices whose first module gets another version in an hour.
    connecting:
        Fraction of the devices, among those not always online, that connect and report on a day.
    always_online:
        Fraction of the devices that are always online, and report without a new connection.
    restarting:
        Fraction of the devices that are always online that report only after a restart, as often as others connect.
    offline_reports:
        Fraction of the devices that report while they are offline: their states do not show it.
    last_online:
        Write LastOnlineTime like this. Text has no zone, offset has one, digits are a string, mixed varies by device.
    timestamp:
        Write Timestamp, the time of the last change of status, like this.
    utc:
        Write the times of firmware, update jobs and their tasks like this.
    zone:
        Zone of times without a zone, in hours ahead of UTC.
    scalars:
        Write numbers and truth values as JSON's own, or as strings.
    arrays:
        Write arrays as documented, bare in place of the object that holds them, or always wrapped in an object.
    empty:
        Write an array without items as an array, as null, as an object without it, or as null instead of the object.
    unused:
        Leave out members without a value, or write null or an empty string.
    fleet:
        Configure a fleet file, or all products of the account, in the written settings.
    write:
        Write simulated.toml, its secret and its fleet file to this folder, ready for auditor run.
    """
    from datetime import timedelta, timezone

    from auditor.concurrency import run_event_loop
    from auditor.simulator.forms import ResponseForms
    from auditor.simulator.lifecycle import Lifecycle
    from auditor.simulator.search.options import IndexOptions
    from auditor.simulator.standalone import SimulationConfig, serve

    require_positive("--accounts", accounts, "accounts")
    if not -MAX_ZONE_HOURS <= zone <= MAX_ZONE_HOURS:
        raise UsageError(f"--zone {zone:g}: give hours ahead of UTC, from -{MAX_ZONE_HOURS} to {MAX_ZONE_HOURS}")
    if index_lag is not None:
        require_extra()
    forms = ResponseForms(
        last_online=last_online,
        timestamp=timestamp,
        utc=utc,
        zone=timezone(timedelta(hours=zone)),
        scalars=scalars,
        arrays=arrays,
        empty=empty,
        unused=unused,
    )
    try:
        lifecycle = Lifecycle(connecting, always_online, restarting, offline_reports)
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = SimulationConfig(
        devices=devices,
        products=products,
        seed=seed,
        dialect=dialect,
        per_second=per_second or None,
        window=window,
        latency=latency,
        faults=faults,
        day=day,
        accounts=accounts,
        register=register,
        remove=remove,
        changes=changes,
        fleet=fleet,
        lifecycle=lifecycle,
        forms=forms,
        index=None if index_lag is None else IndexOptions(index_lag),
    )
    run_event_loop(lambda: serve(config, port, write, print_line), use_uvloop=True)
    return 0


def require_extra() -> None:
    """Raise UsageError if the package is not installed that parses the statements of QueryDeviceBySQL."""
    try:
        import lark  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--index-lag needs {error.name}: {describe_extra('simulator')}") from None
