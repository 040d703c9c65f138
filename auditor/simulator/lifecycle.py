"""When the devices of a world are connected, and who reports versions without it: a function of draws and a day.

who               connects                      reports versions   is
always online     never again after day 0       every day          ONLINE
restarting        on the days of its restarts   on those days      ONLINE
offline reporter  never again after day 0       every day          OFFLINE
disabled          never again after day 0       on day 0           DISABLE
everyone else     on some days                  on those days      OFFLINE, or ONLINE on such a day
"""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from auditor.simulator.catalog import CERTAIN

DeviceStatus = Literal["ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"]
"""As the platform spells them."""


_DISABLED_FROM = CERTAIN - CERTAIN // 100


_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Life:
    """How the devices of a fleet live, as parts from 0 to 1.

    A device that connects does so once in each stretch of ``1 / connecting`` days, on a drawn day of it. One in a
    hundred devices is disabled, unless it is always online or reports while it is offline.

    Attributes:
        connecting: the part that connects on a day, of the devices that connect at all. It reports its versions, and
            goes offline the same day; half of these devices do so only after the platform was asked.
        always_online: the part of all devices that came online before day 0 and stays so. It reports its versions
            every day, without a connection that would show it.
        restarting: the part of those that reports only when it restarts, which the platform sees as a connection. On
            a day so many of them restart as ``connecting`` says.
        offline_reports: the part of all devices that is offline since before day 0 and reports its versions every day
            all the same: nothing in its state shows it.
    """

    connecting: float = 0.2
    always_online: float = 0.7
    restarting: float = 0.0
    offline_reports: float = 0.0

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            part = getattr(self, name)
            if not 0 <= part <= 1:
                raise ValueError(f"{name} is a part, 0 to 1, not {part}")
        if self.always_online + self.offline_reports > 1:
            raise ValueError("always_online and offline_reports are parts of the same devices: together at most 1")


ORDINARY_LIFE = Life()
"""That of a world that is told nothing else."""


class Presence(NamedTuple):
    """What a day finds of a device that was activated: its status, and the last days, 0 for before day 1."""

    status: DeviceStatus
    connected: int
    reported: int


class Timetable:
    """Who is connected, up to one day and on it.

    A day takes as long as any other: which day a device connects on is drawn within stretches of days, as the missing
    devices of a ``Layout`` are drawn within strata, so that no day before needs to be looked at.
    """

    def __init__(self, life: Life, day: int) -> None:
        self._day = day
        self._restarting = round(life.always_online * life.restarting * CERTAIN)
        self._always_online = round(life.always_online * CERTAIN)
        self._reporting = round((life.always_online + life.offline_reports) * CERTAIN)
        self._connecting = round(life.connecting * CERTAIN)

    def presence(self, kind: int, phase: int) -> Presence:
        """That of the device that drew ``kind``, 32 bits, and ``phase``, 16 bits."""
        if kind < self._restarting:
            connected = self._last_connected(kind, phase)
            return Presence("ONLINE", connected, connected)
        if kind < self._always_online:
            return Presence("ONLINE", 0, self._day)
        if kind < self._reporting:
            return Presence("OFFLINE", 0, self._day)
        if kind >= _DISABLED_FROM:
            return Presence("DISABLE", 0, 0)
        connected = self._last_connected(kind, phase)
        stays = kind & 1 and connected == self._day > 0
        return Presence("ONLINE" if stays else "OFFLINE", connected, connected)

    def _last_connected(self, kind: int, phase: int) -> int:
        """The last day, from 1 on, on which the device connected; 0 if it did not."""
        part = self._connecting
        if not part or not self._day:
            return 0
        # Devices begin their stretches on different days, or days at the seam of two stretches would stand out.
        place = self._day + phase
        stretch = ((place + 1) * part - 1) // CERTAIN
        first, after = stretch * CERTAIN // part, (stretch + 1) * CERTAIN // part
        drawn = first + _mixed(kind << 16 | phase, stretch) % (after - first)
        if drawn > place:
            before = (stretch - 1) * CERTAIN // part
            drawn = before + _mixed(kind << 16 | phase, stretch - 1) % (first - before)
        return max(drawn - phase, 0)


def _mixed(device: int, stretch: int) -> int:
    """64 bits that look drawn: the generator ``splitmix64``, ten times faster than a hash."""
    mixed = device + stretch * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
    return mixed ^ mixed >> 31
