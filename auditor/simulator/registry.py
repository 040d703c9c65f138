"""The devices of a world that exist at a moment, and their records on the platform: secret, status and dates.

Devices are registered and removed while the platform runs. Records are a function of the device and of the start of
its world, so nothing is stored.
"""

import math
import random
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, islice, takewhile
from struct import Struct

from auditor.models import ModuleVersion
from auditor.simulator.lifecycle import DeviceStatus
from auditor.simulator.world import MS_PER_DAY, MS_PER_MONTH, SimulatedDevice, World


@dataclass(frozen=True, slots=True)
class Churn:
    """Devices that are registered and removed during discovery, evenly in time.

    Attributes:
        register_per_second: new devices a second, each at the front of its product's list.
        remove_per_second: random devices a second.
        seed: random seed.
        changes_per_hour: fraction of the devices whose first module gets another version in an hour.
    """

    register_per_second: float = 0.0
    remove_per_second: float = 0.0
    seed: int = 0
    changes_per_hour: float = 0.0

    def __post_init__(self) -> None:
        for rate in (self.register_per_second, self.remove_per_second, self.changes_per_hour):
            if not 0 <= rate < math.inf:
                raise ValueError(f"devices must be registered, removed and changed at 0 or more a second, not {rate}")


NO_CHURN = Churn()


class Registry:
    """The devices of a world that exist, by name, by id and by position in their product's list.

    Args:
        world: devices before the first list request.
        churn: registered and removed since.

    Attributes:
        world: as given.
        registered: number of devices registered since; their indices follow those of the world.
        removed: indices of the devices removed since.
    """

    def __init__(self, world: World, churn: Churn = NO_CHURN) -> None:
        self.world = world
        self.registered = 0
        self._all = world.unbounded()
        self._removed_places: dict[int, array[int]] = {}
        self._names: tuple[object, list[tuple[str, int]]] = (None, [])  # names with their places, as last searched
        self._churn = churn
        self._random = random.Random(churn.seed)  # noqa: S311  reproducible, no secret
        self._began: float | None = None
        self._opened: float | None = None
        self._now = 0.0
        self._next_registered = _seconds(1, churn.register_per_second)
        self._next_removed = _seconds(1, churn.remove_per_second)
        self._removals = 0
        self.removed: set[int] = set()

    def start_churn(self, now: float) -> None:
        """Start at the first list request, at ``now`` in seconds; later calls change nothing."""
        if self._began is None:
            self._began = now

    def advance(self, now: float) -> None:
        """Register and remove all devices that are due at ``now``, in seconds."""
        self._now = now
        if self._opened is None:
            self._opened = now
        if self._began is None:
            return
        since = now - self._began
        while min(self._next_registered, self._next_removed) <= since:
            if self._next_registered <= self._next_removed:
                self.registered += 1
                self._next_registered = _seconds(self.registered + 1, self._churn.register_per_second)
            else:
                self._remove_one()
                self._removals += 1
                self._next_removed = _seconds(self._removals + 1, self._churn.remove_per_second)

    def find(self, product_key: str, device_name: str) -> SimulatedDevice | None:
        """Return the device of that name, if it exists."""
        return self._existing(self._all.find(product_key, device_name))

    def find_by_iot_id(self, iot_id: str) -> SimulatedDevice | None:
        """Return the device with that id, if it exists."""
        return self._existing(self._all.find_by_iot_id(iot_id))

    def modules(self, device: SimulatedDevice, ago: float = 0.0) -> tuple[ModuleVersion, ...]:
        """Return what a device had reported ``ago`` seconds before now.

        Each device changes at moments of its own. Until the first one since the first request, it has the versions of
        its world; before that request, it had others.
        """
        if not self._churn.changes_per_hour or not device.modules:
            return device.modules
        phase = int.from_bytes(blake2b(f"{self._churn.seed} {device.iot_id}".encode(), digest_size=4).digest()) / 2**32
        hours = (self._now - ago - (self._now if self._opened is None else self._opened)) / 3600
        changes = math.floor(hours * self._churn.changes_per_hour + phase)
        if not changes:
            return device.modules
        first, *others = device.modules
        return (ModuleVersion(first.module_name, f"{first.module_version}.{changes}"), *others)

    def count(self, product: int) -> int:
        """Return how many devices of a product exist."""
        return self._existing_before(product, self._places(product))

    def count_created(self, product: int, after: int | None, before: int | None) -> int:
        """Return how many devices of a product were created between two times, in ms since 1970, without these."""
        places = self._created(product, after, before)
        return self._existing_before(product, places.stop) - self._existing_before(product, places.start)

    def created(self, product: int, after: int | None, before: int | None) -> Iterator[SimulatedDevice]:
        """Yield the devices of a product that were created between two times, the oldest first."""
        for place in self._created(product, after, before):
            if device := self._existing(self._all.device(self.world.layout.index_at(product, place))):
                yield device

    def created_with_prefix(
        self, product: int, after: int | None, before: int | None, prefix: str, *, ignores_case: bool
    ) -> Iterator[SimulatedDevice]:
        """Yield those of ``created`` whose names start with a prefix."""
        places = self._created(product, after, before)
        found: Callable[[str], str] = str.casefold if ignores_case else str
        key = (product, places, ignores_case)
        if self._names[0] != key:
            names = ((self._all.device(self.world.layout.index_at(product, place)), place) for place in places)
            self._names = key, sorted((found(device.device_name), place) for device, place in names)
        first = bisect_left(self._names[1], (found(prefix), -1))
        matching = takewhile(lambda each: each[0].startswith(found(prefix)), islice(self._names[1], first, None))
        for place in sorted(place for _, place in matching):
            if device := self._existing(self._all.device(self.world.layout.index_at(product, place))):
                yield device

    def _created(self, product: int, after: int | None, before: int | None) -> range:
        """Return the places of the devices that were created after a time and before another one."""

        def created_at(place: int) -> int:
            return self.world.created_at(self.world.layout.index_at(product, place))

        places = range(self._places(product))
        first = 0 if after is None else bisect_right(places, after, key=created_at)
        end = len(places) if before is None else bisect_left(places, before, key=created_at)
        return range(first, max(first, end))

    def newest(self, product: int, first: int, limit: int) -> list[SimulatedDevice]:
        """Return up to ``limit`` of a product's devices, the newest first, from position ``first`` (from 0) on."""
        found: list[SimulatedDevice] = []
        rank = self.count(product) - 1 - first
        place = self._place_at(product, rank) if rank >= 0 else -1
        while place >= 0 and len(found) < limit:
            if device := self._existing(self._all.device(self.world.layout.index_at(product, place))):
                found.append(device)
            place -= 1
        return found

    def _existing(self, device: SimulatedDevice | None) -> SimulatedDevice | None:
        if device is None or not device.exists or device.index in self.removed:
            return None
        return device if device.index < len(self.world) + self.registered else None

    def _places(self, product: int) -> int:
        return self.world.layout.count_before(product, len(self.world) + self.registered)

    def _existing_before(self, product: int, place: int) -> int:
        removed = bisect_left(self._removed_places.get(product, ()), place)
        return place - self.world.layout.missing_before(product, place) - removed

    def _place_at(self, product: int, rank: int) -> int:
        """Return the place of the device before which ``rank`` devices of the product exist."""
        places = range(self._places(product))
        return bisect_left(places, rank + 1, key=lambda place: self._existing_before(product, place + 1))

    def _remove_one(self) -> None:
        counts = [self.count(product) for product in range(len(self.world.products))]
        ends = list(accumulate(counts))
        if not ends[-1]:
            return
        rank = self._random.randrange(ends[-1])
        product = bisect_right(ends, rank)
        place = self._place_at(product, rank - ends[product] + counts[product])
        insort(self._removed_places.setdefault(product, array("q")), place)
        self.removed.add(self.world.layout.index_at(product, place))


def _seconds(number: int, per_second: float) -> float:
    """Return the seconds after which the ``number``-th of ``per_second`` events happens."""
    return number / per_second if per_second else math.inf


DEVICE_SECRET_PREFIX = "device-secret-"  # noqa: S105  a mark to look for, no secret
"""Every device's secret begins with this, so that a search finds any that was stored."""

ACTIVATION_MS = 60_000
"""Milliseconds from a device's registration to its activation."""

_RANDOM_FIELDS = Struct("<2x3I4B8s")

_CONNECTION_PERIOD = 500
"""Milliseconds within which the devices of a day come online, and in which they then go offline.

An audit of that day takes longer, so it ends after all of this.
"""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device as the platform stores it; times are in milliseconds since 1970.

    Attributes:
        changed: when its status was changed.
        online: when it came online last; None if never.
        address: its network address when it was online.
        secret: its credential; clients of the API receive it and must not store it.
    """

    status: DeviceStatus
    created: int
    modified: int
    changed: int
    online: int | None
    address: str
    secret: str


def device_record(device: SimulatedDevice, began: int) -> DeviceRecord:
    """Return the record of a device of a world whose day 0 is ``began``, in milliseconds since 1970."""
    digest = blake2b(device.iot_id.encode(), digest_size=_RANDOM_FIELDS.size).digest()
    modified, online, offline, *host, secret = _RANDOM_FIELDS.unpack(digest)
    created = device.created
    if device.connected_day:
        online_at = began + device.connected_day * MS_PER_DAY + online % _CONNECTION_PERIOD
        offline_at = online_at + 1 + offline % _CONNECTION_PERIOD
    else:
        online_at = began - 2 * MS_PER_DAY - online % MS_PER_MONTH
        offline_at = online_at + offline % MS_PER_DAY
    changed = {"ONLINE": online_at, "UNACTIVE": created}.get(device.status, offline_at)
    return DeviceRecord(
        status=device.status,
        created=created,
        modified=created + modified % MS_PER_MONTH,
        changed=changed,
        online=online_at if device.activated else None,
        address=f"10.{host[0]}.{host[1]}.{host[2]}:{40_000 + host[3]}" if device.activated else "",
        secret=DEVICE_SECRET_PREFIX + secret.hex(),
    )
