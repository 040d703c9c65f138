"""Command that starts a simulated platform."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from auditor.cli.console import print_line
from auditor.cli.options import require_positive
from auditor.errors import UsageError
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from auditor.simulator.forms import ResponseForms

PLATFORM = Group("Platform", sort_key=1)
FLEET = Group("Fleet", sort_key=2)
LIFECYCLE = Group("How devices connect and report versions (fractions from 0 to 1)", sort_key=3)
FORMS = Group("Forms of answers, where documents and samples differ", sort_key=4)

# The same as in `auditor.simulator.forms`, which is loaded only if a platform starts.
TimeForm = Literal[
    "text", "iso", "offset", "milliseconds", "digits", "seconds", "unreadable", "empty", "null", "absent", "mixed"
]
MAX_ZONE_HOURS = 14


@dataclass(frozen=True, kw_only=True)
class PlatformFlags:
    """Flags about the platform."""

    port: int = 8686
    """Listen on this port of this machine; 0 uses a free port."""

    dialect: Literal["tuya", "alibaba"] = "tuya"
    """Spell answers like this platform."""

    accounts: int = 1
    """Number of accounts, each with a fleet of its own."""

    per_second: float | None = 10.0
    """Quota of each account for ListOTAModuleVersionsByDevice, in calls a second; 0 disables all quotas."""

    window: Literal["fixed", "sliding", "bucket"] = "sliding"
    """Count the quota in calendar seconds, in the last second, or with a token bucket."""

    latency: Annotated[tuple[float, float], Parameter(negative=())] = (20.0, 80.0)
    """Minimum and maximum latency of an answer, in milliseconds."""

    faults: float = 0.0
    """Fraction of requests with a fault: resets, 5xx, HTML, incomplete bodies, no answer, and more."""

    index_lag: float | None = None
    """Answer QueryDeviceBySQL by an index that is this many seconds behind the devices. Needs the extra simulator."""


@dataclass(frozen=True, kw_only=True)
class FleetFlags:
    """Flags about the devices, and how they change."""

    devices: int = 10_000
    """Number of devices of each account. Some do not exist, report nothing, or have more than 200 modules."""

    products: int = 4
    """Number of products."""

    seed: int = 0
    """Random seed of fleet, faults and latency."""

    day: int = 0
    """Age of the fleet in days. Each day updates reach more devices, and a few are rolled back."""

    register: float = 0.0
    """Devices per second that are registered while a fleet is listed."""

    remove: float = 0.0
    """Devices per second that are removed while a fleet is listed."""

    changes: float = 0.0
    """Fraction of the devices whose first module gets another version in an hour."""


@dataclass(frozen=True, kw_only=True)
class LifecycleFlags:
    """Flags about how devices connect and report versions; see ``Lifecycle``."""

    connecting: float = 0.2
    """Fraction of the devices, among those not always online, that connect and report on a day."""

    always_online: float = 0.7
    """Fraction of the devices that are always online, and report without a new connection."""

    restarting: float = 0.0
    """Fraction of the devices that are always online that report only after a restart, as often as others connect."""

    offline_reports: float = 0.0
    """Fraction of the devices that report while they are offline: their states do not show it."""


@dataclass(frozen=True, kw_only=True)
class FormFlags:
    """Flags about the forms of answers; see ``ResponseForms``."""

    last_online: TimeForm = "text"
    """Write LastOnlineTime like this. Text has no zone, offset has one, digits are a string, mixed varies by device."""

    timestamp: TimeForm = "milliseconds"
    """Write Timestamp, the time of the last change of status, like this."""

    utc: TimeForm = "iso"
    """Write the times of firmware, update jobs and their tasks like this."""

    zone: float = 8.0
    """Zone of times without a zone, in hours ahead of UTC."""

    scalars: Literal["typed", "text"] = "typed"
    """Write numbers and truth values as JSON's own, or as strings."""

    arrays: Literal["documented", "bare", "wrapped"] = "documented"
    """Write arrays as documented, bare in place of the object that holds them, or always wrapped in an object."""

    empty: Literal["array", "null", "object", "none"] = "array"
    """Write an array without items as an array, as null, as an object without it, or as null instead of the object."""

    unused: Literal["absent", "null", "text"] = "absent"
    """Leave out members without a value, or write null or an empty string."""


def simulate(
    *,
    platform: Annotated[PlatformFlags | None, Parameter(name="*", group=PLATFORM)] = None,
    population: Annotated[FleetFlags | None, Parameter(name="*", group=FLEET)] = None,
    lifecycle: Annotated[LifecycleFlags | None, Parameter(name="*", group=LIFECYCLE)] = None,
    forms: Annotated[FormFlags | None, Parameter(name="*", group=FORMS)] = None,
    fleet: Literal["file", "products"] = "file",
    write: Path | None = None,
) -> int:
    """Start a simulated platform (Ctrl-C to stop).

    It is as strict as the real one. Print the endpoint, access key id and secret of each account.

    Parameters
    ----------
    fleet:
        Configure a fleet file, or all products of the account, in the written settings.
    write:
        Write simulated.toml, its secret and its fleet file to this folder, ready for auditor run.
    """
    from auditor.concurrency import run_event_loop
    from auditor.simulator.lifecycle import Lifecycle
    from auditor.simulator.search.options import IndexOptions
    from auditor.simulator.standalone import SimulationConfig, serve

    flags = asdict(platform or PlatformFlags()) | asdict(population or FleetFlags())
    port, index_lag = flags.pop("port"), flags.pop("index_lag")
    require_positive("--accounts", flags["accounts"], "accounts")
    if index_lag is not None:
        require_extra()
    try:
        activity = Lifecycle(**asdict(lifecycle or LifecycleFlags()))
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = SimulationConfig(
        **flags | {"per_second": flags["per_second"] or None},
        fleet=fleet,
        lifecycle=activity,
        forms=_response_forms(forms or FormFlags()),
        index=None if index_lag is None else IndexOptions(index_lag),
    )
    run_event_loop(lambda: serve(config, port, write, print_line), use_uvloop=True)
    return 0


def _response_forms(flags: FormFlags) -> "ResponseForms":
    from datetime import timedelta, timezone

    from auditor.simulator.forms import ResponseForms

    if not -MAX_ZONE_HOURS <= flags.zone <= MAX_ZONE_HOURS:
        raise UsageError(f"--zone {flags.zone:g}: give hours ahead of UTC, from -{MAX_ZONE_HOURS} to {MAX_ZONE_HOURS}")
    return ResponseForms(**asdict(flags) | {"zone": timezone(timedelta(hours=flags.zone))})


def require_extra() -> None:
    """Raise UsageError if the package is not installed that parses the statements of QueryDeviceBySQL."""
    try:
        import lark  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--index-lag needs {error.name}: {describe_extra('simulator')}") from None
