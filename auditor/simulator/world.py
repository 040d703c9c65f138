"""A fleet as a function of an index: a million devices take no more memory than one."""

import copy
import csv
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Self

from auditor.models import ModuleVersion
from auditor.simulator.catalog import CERTAIN, Layout, Product, make_products, version_text
from auditor.simulator.lifecycle import ORDINARY_LIFE, DeviceStatus, Life, Timetable

FIRST_REGISTERED = round(datetime(2025, 3, 1, tzinfo=UTC).timestamp() * 1000)
"""When the first device of every world was registered, in milliseconds since 1970."""


DAY = 86_400_000
"""Milliseconds of a simulated day."""


# Late enough for twelve million devices to be registered and then connected before.
_BEGAN = FIRST_REGISTERED + 61 * DAY


_LAST_TODAY = 1 << 37


# 64 drawn bytes: how the device lives, what it is (32 bits each), when it connects, its modules (16 bits each), its
# iot_id's first part.
_DRAWS = Struct("<I3IH15H16s")


_ID_SPACE = 1 << 40


_ID_DIGITS = 10


_STEP = 0x9E3779B97F | 1


_STEP_BACK = pow(_STEP, -1, _ID_SPACE)


_LONGEST_INDEX = 18


_LARGE_FROM, _LARGE_TO = 201, 1000


_TURNS = 10
"""The first of the draws that say when updates reach a device, after two for each of five modules. The fifth is the
very first: whether ``default`` was reported is not drawn."""


FLEET_COLUMNS = ("product_key", "device_name", "iot_id")
"""The columns of a fleet file that a world can write."""


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One device of the world.

    Attributes:
        index: its place in the world, from 0.
        exists: False: a fleet file names it but the platform does not know it.
        activated: False: the platform answers ``iot.device.InactiveDevice``.
        modules: what it has reported; empty if it is silent, inactive or does not exist.
        status: what the platform says of it.
        connected: the last day on which it connected, up to the world's; 0 if that was before day 1. So it connected
            after day 3 if this is above 3.
        reported: the last day on which it reported what it ran then, likewise; later than ``connected`` if it did so
            without a connection.
    """

    index: int
    product_key: str
    device_name: str
    iot_id: str
    exists: bool
    activated: bool
    modules: tuple[ModuleVersion, ...]
    status: DeviceStatus
    connected: int
    reported: int


class World:
    """``devices`` simulated devices of ``products`` products; equal arguments give equal worlds, on any machine.

    Args:
        devices: how many, the missing ones too.
        seed: another seed, another world.
        missing: the part, 0 to 1, that the platform does not know.
        silent: the part of the rest that has reported nothing.
        inactive: the part of the rest that was never activated.
        large: the part of the rest with 201 to 1000 modules, which one page cannot hold.
        special: index to exact number of modules, above all other settings; 0 is a silent device.
        day: the same fleet so many days later: updates reach more of its devices each day, and a few are rolled back.
            What a device reports are its versions on the last day on which it reported.
        life: which of its devices connect as the days pass, and which report without it.
        today: when ``day`` begins, in seconds since 1970, so that the platform's times compare with a clock's. Days
            are 24 hours apart, and connections of a day are told as of its first second, so that they are later
            than an audit that ended before. What was before day 1 is told as a day or more before day 0. None: day 0
            is the same moment of 2025 in every world.

    Attributes:
        began: when day 0 begins, in milliseconds since 1970.
        products: what it has, in the order of their numbers.
        layout: which index is which product's device.
    """

    def __init__(
        self,
        devices: int,
        *,
        seed: int = 0,
        products: int = 4,
        missing: float = 0.01,
        silent: float = 0.02,
        inactive: float = 0.005,
        large: float = 0.0005,
        special: Mapping[int, int] | None = None,
        day: int = 0,
        life: Life = ORDINARY_LIFE,
        today: float | None = None,
    ) -> None:
        if not 0 <= devices <= _ID_SPACE:
            raise ValueError(f"devices must be 0 to {_ID_SPACE}, not {devices}")
        if products < 1:
            raise ValueError(f"a world has at least one product, not {products}")
        parts = {"missing": missing, "silent": silent, "inactive": inactive, "large": large}
        for name, part in parts.items():
            if not 0 <= part <= 1:
                raise ValueError(f"{name} is a part, 0 to 1, not {part}")
        if any(count < 0 for count in (special or {}).values()):
            raise ValueError("special says how many modules a device has: no negative numbers")
        if day < 0:
            raise ValueError(f"day is a number of days, from 0 up, not {day}")
        if today is not None and not 0 <= today < _LAST_TODAY:
            raise ValueError(f"today is in seconds since 1970, not {today}")
        self.seed, self.day = seed, day
        # What was read before this moment must not look as if it were read after it: never rounded down.
        self.began = _BEGAN if today is None else math.ceil(today * 1000) - day * DAY
        self._devices = devices
        self._special = dict(special or {})
        lost, self._silent, self._inactive, self._large = (round(part * CERTAIN) for part in parts.values())
        self.products = make_products(seed, products)
        self.layout = Layout(seed, products, devices, lost, self._special)
        self._by_key = {product.product_key: number for number, product in enumerate(self.products)}
        self._timetable = Timetable(life, day)
        self._dice = blake2b(f"device {seed} ".encode())
        self._id_offset = int.from_bytes(blake2b(f"ids {seed}".encode(), digest_size=5).digest(), "big")

    def __len__(self) -> int:
        return self._devices

    def __iter__(self) -> Iterator[SimulatedDevice]:
        return map(self.device, range(self._devices))

    @property
    def product_keys(self) -> tuple[str, ...]:
        """The keys of all products."""
        return tuple(self._by_key)

    def product_number(self, product_key: str) -> int | None:
        """Which of the world's products that is, from 0; None if the platform does not know it."""
        return self._by_key.get(product_key)

    def endless(self) -> Self:
        """The same world with devices that are registered after its own, without end: all of these exist."""
        longer = copy.copy(self)
        longer._devices = _ID_SPACE  # noqa: SLF001  of its own class
        return longer

    def device(self, index: int) -> SimulatedDevice:
        """The device at ``index``; raises IndexError outside of the world."""
        if not 0 <= index < self._devices:
            raise IndexError(f"no device {index} in a world of {self._devices}")
        dice = self._dice.copy()
        dice.update(index.to_bytes(8, "big"))
        kind, silent, inactive, large, phase, size, *draws, letters = _DRAWS.unpack(dice.digest())
        number, place = self.layout.place_of(index)
        product = self.products[number]
        exact = self._special.get(index)
        exists = self.layout.exists(index, number, place)
        activated = exact is not None or inactive >= self._inactive
        status, connected, reported = self._timetable.presence(kind, phase)
        if not activated:
            status, connected, reported = "UNACTIVE", 0, 0
        modules: tuple[ModuleVersion, ...] = ()
        if exact is not None:
            modules = _exactly(product, exact, draws)
        elif not exists or not activated or silent < self._silent:
            pass
        elif large < self._large:
            modules = _exactly(product, _LARGE_FROM + size % (_LARGE_TO - _LARGE_FROM + 1), draws)
        else:
            modules = _reported(product, draws, reported)
        tail = (index * _STEP + self._id_offset) % _ID_SPACE
        return SimulatedDevice(
            index=index,
            product_key=product.product_key,
            device_name=f"{product.prefix}{index:08d}",
            iot_id=f"{b64encode(letters, b'Qk')[:22].decode()}{tail:0{_ID_DIGITS}x}",
            exists=exists,
            activated=activated,
            modules=modules,
            status=status,
            connected=connected,
            reported=reported,
        )

    def find(self, product_key: str, device_name: str) -> SimulatedDevice | None:
        """The device of that name if the platform knows it: read from the name itself, without any table."""
        number = self._by_key.get(product_key)
        if number is None or not device_name.startswith(prefix := self.products[number].prefix):
            return None
        digits = device_name.removeprefix(prefix)
        if len(digits) > _LONGEST_INDEX or not (digits.isascii() and digits.isdigit()):
            return None
        found = self._existing(int(digits))
        return found if found and (found.product_key, found.device_name) == (product_key, device_name) else None

    def find_by_iot_id(self, iot_id: str) -> SimulatedDevice | None:
        """The device of that id if the platform knows it: its index is folded into the id's last ten digits."""
        try:
            tail = int(iot_id[-_ID_DIGITS:], 16)
        except ValueError:
            return None
        found = self._existing((tail - self._id_offset) * _STEP_BACK % _ID_SPACE)
        return found if found and found.iot_id == iot_id else None

    def _existing(self, index: int) -> SimulatedDevice | None:
        if index >= self._devices:
            return None
        device = self.device(index)
        return device if device.exists else None

    def write_fleet(self, path: Path, *, columns: tuple[str, ...] = FLEET_COLUMNS) -> None:
        """Writes all devices, missing ones too, as CSV (UTF-8, a header, a line each), one device at a time."""
        unknown = set(columns) - set(FLEET_COLUMNS)
        if unknown or not columns:
            raise ValueError(f"columns are some of {', '.join(FLEET_COLUMNS)}, not {', '.join(columns) or 'none'}")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([getattr(device, column) for column in columns] for device in self)


def _reported(product: Product, draws: list[int], day: int) -> tuple[ModuleVersion, ...]:
    """What an ordinary device reported: ``default`` always, the product's other modules mostly."""
    return tuple(
        module.version(draws[2 * place + 1], day, draws[(_TURNS + place) % len(draws)])
        for place, module in enumerate(product.modules)
        if draws[2 * place] < module.reported
    )


def _exactly(product: Product, count: int, draws: list[int]) -> tuple[ModuleVersion, ...]:
    """``count`` modules: the product's own first, then as many plug-ins as it takes."""
    own = [module.version(draws[2 * place + 1]) for place, module in enumerate(product.modules[:count])]
    plugins = (
        ModuleVersion(f"plugin-{number:05d}", version_text(number % 6, (draws[0] + number * 7) % 30))
        for number in range(len(own), count)
    )
    return (*own, *plugins)
