"""When the devices of a world connect and report versions: a function of random numbers and the day.

device            connects                      reports versions   status
always online     never again after day 0       every day          ONLINE
restarting        on the days of its restarts   on those days      ONLINE
offline reporter  never again after day 0       every day          OFFLINE
disabled          never again after day 0       on day 0           DISABLE
any other         on some days                  on those days      OFFLINE, or ONLINE on such a day
"""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from auditor.simulator.catalog import FRACTION_SCALE

DeviceStatus = Literal["ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"]
"""Names of the platform."""

_DISABLED_FROM = FRACTION_SCALE - FRACTION_SCALE // 100
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How the devices of a fleet connect and report, as fractions from 0 to 1.

    A device that connects does so once in each period of ``1 / connecting`` days, on a random day of it. One in a
    hundred devices is disabled, unless it is always online or reports while it is offline.

    Attributes:
        connecting: fraction that connects on a day, of the devices that connect at all. They report their versions,
            and go offline the same day; half of them only after the platform was queried.
        always_online: fraction of all devices that are online since before day 0, and report their versions every day.
        restarting: fraction of these that report only when they restart, as many on a day as ``connecting`` says.
        offline_reports: fraction of all devices that are offline since before day 0, but report every day.
    """

    connecting: float = 0.2
    always_online: float = 0.7
    restarting: float = 0.0
    offline_reports: float = 0.0

    def __post_init__(self) -> None:
        for name, fraction in asdict(self).items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, not {fraction}")
        if self.always_online + self.offline_reports > 1:
            raise ValueError("always_online and offline_reports must be at most 1 together")


ORDINARY_LIFECYCLE = Lifecycle()
"""Lifecycle of a world by default."""


class DeviceActivity(NamedTuple):
    """Status of an activated device on a day, and the last days of connection and report; 0: before day 1."""

    status: DeviceStatus
    connected_day: int
    reported_day: int


class ConnectionSchedule:
    """Connections of the devices up to one day.

    The day on which a device connects is random within each period, as the missing devices of a ``Layout`` are within
    strata. So earlier days need not be computed, and any day takes the same time.
    """

    def __init__(self, lifecycle: Lifecycle, day: int) -> None:
        self._day = day
        self._restarting = round(lifecycle.always_online * lifecycle.restarting * FRACTION_SCALE)
        self._always_online = round(lifecycle.always_online * FRACTION_SCALE)
        self._reporting = round((lifecycle.always_online + lifecycle.offline_reports) * FRACTION_SCALE)
        self._connecting = round(lifecycle.connecting * FRACTION_SCALE)

    def activity(self, kind: int, phase: int) -> DeviceActivity:
        """Return the activity of the device with the random numbers ``kind``, 32 bits, and ``phase``, 16 bits."""
        if kind < self._restarting:
            connected = self._last_connected(kind, phase)
            return DeviceActivity("ONLINE", connected, connected)
        if kind < self._always_online:
            return DeviceActivity("ONLINE", 0, self._day)
        if kind < self._reporting:
            return DeviceActivity("OFFLINE", 0, self._day)
        if kind >= _DISABLED_FROM:
            return DeviceActivity("DISABLE", 0, 0)
        connected = self._last_connected(kind, phase)
        stays = kind & 1 and connected == self._day > 0
        return DeviceActivity("ONLINE" if stays else "OFFLINE", connected, connected)

    def _last_connected(self, kind: int, phase: int) -> int:
        """Return the last day, from 1 on, on which the device connected; 0 if it did not."""
        fraction = self._connecting
        if not fraction or not self._day:
            return 0
        # Devices start their periods on different days, so that no day differs from the others.
        place = self._day + phase
        period = ((place + 1) * fraction - 1) // FRACTION_SCALE
        first, after = period * FRACTION_SCALE // fraction, (period + 1) * FRACTION_SCALE // fraction
        day = first + _mix(kind << 16 | phase, period) % (after - first)
        if day > place:
            before = (period - 1) * FRACTION_SCALE // fraction
            day = before + _mix(kind << 16 | phase, period - 1) % (first - before)
        return max(day - phase, 0)


def _mix(device: int, period: int) -> int:
    """Return 64 random bits of the generator ``splitmix64``, which is ten times faster than a hash."""
    mixed = device + period * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
