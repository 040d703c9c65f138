"""Which of a world's devices exist at the moment: some are registered while the platform runs, others removed.

What the simulated platform keeps about a device beside its versions: its secret, its status and its dates.

All of it is a function of the device and of when its world began, so nothing is stored. Devices are registered one
after another, and were online before the world's first day.
"""

import math
import random
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b
from itertools import accumulate
from struct import Struct

from auditor.simulator.lifecycle import DeviceStatus
from auditor.simulator.world import DAY, FIRST_REGISTERED, SimulatedDevice, World


@dataclass(frozen=True, slots=True)
class Churn:
    """Devices that come and go while a fleet is listed, evenly in time.

    Attributes:
        register_per_second: new devices a second, each at the front of its product's list.
        remove_per_second: devices a second, drawn from all that exist.
        seed: of what is drawn.
    """

    register_per_second: float = 0.0
    remove_per_second: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for rate in (self.register_per_second, self.remove_per_second):
            if not 0 <= rate < math.inf:
                raise ValueError(f"devices are registered and removed at 0 or more a second, not {rate}")


NO_CHURN = Churn()


class Registry:
    """The devices of a world that exist, by name, by id and by their place in their product's list.

    Args:
        world: what existed before the first listing request.
        churn: what has come and gone since.

    Attributes:
        world: as given.
        registered: how many devices were registered since; their indices follow on the world's.
    """

    def __init__(self, world: World, churn: Churn = NO_CHURN) -> None:
        self.world = world
        self.registered = 0
        self._all = world.endless()
        self._removed: set[int] = set()
        self._removed_places: dict[int, array[int]] = {}
        self._churn = churn
        self._random = random.Random(churn.seed)  # noqa: S311  repeatable churn, no secret
        self._began: float | None = None
        self._next_registered = _seconds(1, churn.register_per_second)
        self._removals = 0
        self._next_removed = _seconds(1, churn.remove_per_second)

    @property
    def removed(self) -> AbstractSet[int]:
        """The indices of the devices that were removed."""
        return self._removed

    def begin(self, now: float) -> None:
        """The first listing request has come, at ``now`` in seconds; later ones change nothing."""
        if self._began is None:
            self._began = now

    def catch_up(self, now: float) -> None:
        """Lets all happen that is due at ``now``, in seconds."""
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
        """The device of that name, if it exists."""
        return self._if_it_exists(self._all.find(product_key, device_name))

    def find_by_iot_id(self, iot_id: str) -> SimulatedDevice | None:
        """The device with that id, if it exists."""
        return self._if_it_exists(self._all.find_by_iot_id(iot_id))

    def count(self, product: int) -> int:
        """How many devices of a product exist."""
        return self._existing_before(product, self._places(product))

    def newest(self, product: int, first: int, most: int) -> list[SimulatedDevice]:
        """At most ``most`` of a product's devices, the last registered first, from the one at ``first`` (from 0) on."""
        found: list[SimulatedDevice] = []
        rank = self.count(product) - 1 - first
        place = self._place_at(product, rank) if rank >= 0 else -1
        while place >= 0 and len(found) < most:
            device = self._if_it_exists(self._all.device(self.world.layout.index_at(product, place)))
            if device is not None:
                found.append(device)
            place -= 1
        return found

    def _if_it_exists(self, device: SimulatedDevice | None) -> SimulatedDevice | None:
        if device is None or not device.exists or device.index in self._removed:
            return None
        return device if device.index < len(self.world) + self.registered else None

    def _places(self, product: int) -> int:
        return self.world.layout.places(product, len(self.world) + self.registered)

    def _existing_before(self, product: int, place: int) -> int:
        removed = bisect_left(self._removed_places.get(product, ()), place)
        return place - self.world.layout.missing_before(product, place) - removed

    def _place_at(self, product: int, rank: int) -> int:
        """The place of the device before which ``rank`` devices of the product exist."""
        places = range(self._places(product))
        return bisect_left(places, rank + 1, key=lambda place: self._existing_before(product, place + 1))

    def _remove_one(self) -> None:
        counts = [self.count(product) for product in range(len(self.world.products))]
        ends = list(accumulate(counts))
        if not ends[-1]:
            return
        drawn = self._random.randrange(ends[-1])
        product = bisect_right(ends, drawn)
        place = self._place_at(product, drawn - ends[product] + counts[product])
        insort(self._removed_places.setdefault(product, array("q")), place)
        self._removed.add(self.world.layout.index_at(product, place))


def _seconds(number: int, per_second: float) -> float:
    """When the ``number``-th of so many a second happens."""
    return number / per_second if per_second else math.inf


DEVICE_SECRET_PREFIX = "device-secret-"  # noqa: S105  a mark to look for, no secret
"""Every device's secret begins with this, so that a search tells whether any was kept."""


_APART = 211
"""Milliseconds from a device's registration to the next."""


_MONTH = 30 * DAY


_CHINA = timezone(timedelta(hours=8))


_DRAWS = Struct("<2x3I4B8s")


_MOMENT = 500
"""Milliseconds within which the devices of a day come online, and within which they go offline then: an audit of that
day, which takes longer, ends after all that happened on it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One device as the platform keeps it; times are milliseconds since 1970.

    Attributes:
        created: when it was registered.
        modified: when its record was changed.
        changed: when it came to be in this status.
        online: when it came online last; None if never.
        address: where it was online from.
        secret: what it shows to the platform; clients of the API get it and must not keep it.
    """

    status: DeviceStatus
    created: int
    modified: int
    changed: int
    online: int | None
    address: str
    secret: str


def record_of(device: SimulatedDevice, began: int) -> Record:
    """What the platform keeps about a device of a world whose day 0 is ``began``, in milliseconds since 1970."""
    dice = blake2b(device.iot_id.encode(), digest_size=_DRAWS.size).digest()
    modified, online, offline, *host, secret = _DRAWS.unpack(dice)
    created = min(FIRST_REGISTERED + device.index * _APART, began - _MONTH - 2 * DAY)
    if device.connected:
        seen = began + device.connected * DAY + online % _MOMENT
        left = seen + 1 + offline % _MOMENT
    else:
        seen = began - 2 * DAY - online % _MONTH
        left = seen + offline % DAY
    changed = {"ONLINE": seen, "UNACTIVE": created}.get(device.status, left)
    return Record(
        status=device.status,
        created=created,
        modified=created + modified % _MONTH,
        changed=changed,
        online=seen if device.activated else None,
        address=f"10.{host[0]}.{host[1]}.{host[2]}:{40_000 + host[3]}" if device.activated else "",
        secret=DEVICE_SECRET_PREFIX + secret.hex(),
    )


def utc_text(milliseconds: int) -> str:
    """``2025-10-10T07:00:32.000Z``, as the platform writes fields whose names begin with ``utc``."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment.isoformat()[:19]}.{milliseconds % 1000:03d}Z"


def gmt_text(milliseconds: int) -> str:
    """``2025-10-10 15:00:32``: what begins with ``gmt`` is China's time in the documents' examples, so it is here."""
    return datetime.fromtimestamp(milliseconds // 1000, _CHINA).isoformat(" ")[:19]
