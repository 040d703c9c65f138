"""A fleet as a function of the index: a million devices take no more memory than the last ones, which are cached."""

import copy
import csv
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any, Self

from auditor.models import ModuleVersion
from auditor.simulator.catalog import FRACTION_SCALE, Layout, SimulatedProduct, make_products, version_text
from auditor.simulator.lifecycle import ORDINARY_LIFECYCLE, ConnectionSchedule, DeviceStatus, Lifecycle

FIRST_REGISTERED = round(datetime(2025, 3, 1, tzinfo=UTC).timestamp() * 1000)
"""When the first device of every world was registered, in milliseconds since 1970."""

MS_PER_DAY = 86_400_000
"""Milliseconds of a simulated day."""

MS_PER_MONTH = 30 * MS_PER_DAY

REGISTRATION_INTERVAL = 211
"""Milliseconds between the registrations of two devices."""

# Late enough for twelve million devices to be registered and then connected before.
_BEGAN = FIRST_REGISTERED + 61 * MS_PER_DAY
_MAX_TODAY = 1 << 37

# 64 random bytes: lifecycle and kind of the device (32 bits each), when it connects, its modules (16 bits each), and
# the first part of its iot_id.
_RANDOM_FIELDS = Struct("<I3IH15H16s")

_ID_SPACE, _ID_DIGITS = 1 << 40, 10
_STEP = 0x9E3779B97F | 1
_INVERSE_STEP = pow(_STEP, -1, _ID_SPACE)
_MAX_INDEX_DIGITS = 18
_MIN_LARGE, _MAX_LARGE = 201, 1000

_ROLLOUT_AT = 10
"""Index of the first random number for the rollout, after two for each of five modules.

The fifth rollout uses the very first one, because ``default`` is always reported.
"""

MAX_CACHED_DEVICES = 128
"""Devices of a world that are kept: those of a small one are computed once."""

FLEET_COLUMNS = ("product_key", "device_name", "iot_id")
"""Columns of the fleet files that a world can write."""


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """One device of the world.

    Attributes:
        index: its number in the world, from 0.
        exists: False: a fleet file names it but the platform does not have it.
        activated: False: the platform answers ``iot.device.InactiveDevice``.
        modules: what it has reported; empty if it is silent, inactive or does not exist.
        status: status on the platform.
        connected_day: last day on which it connected, up to the world's day; 0: before day 1.
        reported_day: last day on which it reported its versions, with or without a new connection.
        created: when it was registered, in milliseconds since 1970.
    """

    index: int
    product_key: str
    device_name: str
    iot_id: str
    exists: bool
    activated: bool
    modules: tuple[ModuleVersion, ...]
    status: DeviceStatus
    connected_day: int
    reported_day: int
    created: int

    @property
    def nickname(self) -> str:
        """Name that people gave it; empty for two of three devices."""
        return "" if self.index % 3 else f"Unit {self.index}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags that people gave it; every second device has none."""
        return {} if self.index % 2 else {"site": f"site-{self.index % 14}", "line": f"{self.index % 6}"}

    @property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups that it is in."""
        return () if self.index % 5 else (f"group{self.index % 3}",)


class World:
    """``devices`` simulated devices of ``products`` products. Equal arguments give equal worlds, on any machine.

    Args:
        devices: number of devices, including missing ones.
        seed: random seed.
        missing: fraction, 0 to 1, that does not exist on the platform.
        silent: fraction of the others that has reported nothing.
        inactive: fraction of the others that was never activated.
        large: fraction of the others with 201 to 1000 modules, more than one page can hold.
        module_counts: exact number of modules by index, before all other settings; 0 is a silent device.
        day: age of the fleet in days. Updates reach more devices each day, and a few are rolled back.
        lifecycle: which devices connect as the days pass, and which report without a connection.
        today: when ``day`` begins, in seconds since 1970, so that the platform's times compare with a clock's.
            Connections of a day are in its first second, and those before day 1 a day or more before day 0. None:
            day 0 is the same moment of 2025 in every world.
        registration_interval: milliseconds between the registrations of two devices; 0: all at one moment.

    Attributes:
        began: when day 0 begins, in milliseconds since 1970.
        products: in the order of their numbers.
        layout: product and place of every index.
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
        module_counts: Mapping[int, int] | None = None,
        day: int = 0,
        lifecycle: Lifecycle = ORDINARY_LIFECYCLE,
        today: float | None = None,
        registration_interval: int = REGISTRATION_INTERVAL,
    ) -> None:
        if not 0 <= devices <= _ID_SPACE:
            raise ValueError(f"devices must be 0 to {_ID_SPACE}, not {devices}")
        if products < 1:
            raise ValueError(f"products must be at least 1, not {products}")
        fractions = {"missing": missing, "silent": silent, "inactive": inactive, "large": large}
        for name, fraction in fractions.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, not {fraction}")
        if any(count < 0 for count in (module_counts or {}).values()):
            raise ValueError("module_counts must not be negative")
        if day < 0:
            raise ValueError(f"day must be 0 or more days, not {day}")
        if today is not None and not 0 <= today < _MAX_TODAY:
            raise ValueError(f"today must be in seconds since 1970, not {today}")
        self.seed, self.day = seed, day
        # Rounded up, so that what was read before this moment never appears to be read after it.
        self.began = _BEGAN if today is None else math.ceil(today * 1000) - day * MS_PER_DAY
        self._devices, self._registration_interval = devices, registration_interval
        self._module_counts = dict(module_counts or {})
        missing_count, self._silent, self._inactive, self._large = (
            round(each * FRACTION_SCALE) for each in fractions.values()
        )
        self.products = make_products(seed, products)
        self.layout = Layout(seed, products, devices, missing_count, self._module_counts)
        self._by_key = {product.product_key: number for number, product in enumerate(self.products)}
        self._schedule = ConnectionSchedule(lifecycle, day)
        self._hash = blake2b(f"device {seed} ".encode())
        self._id_offset = int.from_bytes(blake2b(f"ids {seed}".encode(), digest_size=5).digest(), "big")
        self._cached_device = lru_cache(MAX_CACHED_DEVICES)(self._compute_device)

    def __len__(self) -> int:
        return self._devices

    def __iter__(self) -> Iterator[SimulatedDevice]:
        return map(self.device, range(self._devices))

    @property
    def product_keys(self) -> tuple[str, ...]:
        """Keys of all products."""
        return tuple(self._by_key)

    def product_number(self, product_key: str) -> int | None:
        """Return the number of a product, from 0, or None if it does not exist."""
        return self._by_key.get(product_key)

    def unbounded(self) -> Self:
        """Return the same world with an unlimited number of later devices, which all exist."""
        world = copy.copy(self)
        world._devices = _ID_SPACE  # noqa: SLF001  of its own class
        return world

    def device(self, index: int) -> SimulatedDevice:
        """Return the device at ``index``; raise IndexError outside of the world."""
        if not 0 <= index < self._devices:
            raise IndexError(f"no device {index} in a world of {self._devices}")
        return self._cached_device(index)

    def _compute_device(self, index: int) -> SimulatedDevice:
        kind, silent, inactive, large, phase, size, *numbers, letters = self._random_fields(index)
        number, place = self.layout.position_of(index)
        product = self.products[number]
        exact, exists = self._module_counts.get(index), self.layout.exists(index, number, place)
        activated = exact is not None or inactive >= self._inactive
        status, connected, reported = self._schedule.activity(kind, phase)
        if not activated:
            status, connected, reported = "UNACTIVE", 0, 0
        modules: tuple[ModuleVersion, ...] = ()
        if exact is not None:
            modules = _exact_modules(product, exact, numbers)
        elif not exists or not activated or silent < self._silent:
            pass
        elif large < self._large:
            modules = _exact_modules(product, _MIN_LARGE + size % (_MAX_LARGE - _MIN_LARGE + 1), numbers)
        else:
            modules = _reported_modules(product, numbers, reported)
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
            connected_day=connected,
            reported_day=reported,
            created=self.created_at(index),
        )

    def created_at(self, index: int) -> int:
        """Return when the device at ``index`` was registered, in milliseconds since 1970."""
        return min(FIRST_REGISTERED + index * self._registration_interval, self.began - MS_PER_MONTH - 2 * MS_PER_DAY)

    def rollout_order(self, index: int, module: int) -> int:
        """Return a device's position, 0 to 65535, in the rollout of a module of its product, by the module's number."""
        _kind, _silent, _inactive, _large, _phase, _size, *numbers, _letters = self._random_fields(index)
        return _rollout_order(numbers, module)

    def _random_fields(self, index: int) -> tuple[Any, ...]:
        digest = self._hash.copy()
        digest.update(index.to_bytes(8, "big"))
        return _RANDOM_FIELDS.unpack(digest.digest())

    def find(self, product_key: str, device_name: str) -> SimulatedDevice | None:
        """Return the device of that name, if it exists: its index is part of the name."""
        number = self._by_key.get(product_key)
        if number is None or not device_name.startswith(prefix := self.products[number].prefix):
            return None
        digits = device_name.removeprefix(prefix)
        if len(digits) > _MAX_INDEX_DIGITS or not (digits.isascii() and digits.isdigit()):
            return None
        found = self._existing_device(int(digits))
        return found if found and (found.product_key, found.device_name) == (product_key, device_name) else None

    def find_by_iot_id(self, iot_id: str) -> SimulatedDevice | None:
        """Return the device of that id, if it exists: its index is encoded in the last ten digits."""
        try:
            tail = int(iot_id[-_ID_DIGITS:], 16)
        except ValueError:
            return None
        found = self._existing_device((tail - self._id_offset) * _INVERSE_STEP % _ID_SPACE)
        return found if found and found.iot_id == iot_id else None

    def _existing_device(self, index: int) -> SimulatedDevice | None:
        if index >= self._devices:
            return None
        device = self.device(index)
        return device if device.exists else None

    def write_fleet(self, path: Path, *, columns: tuple[str, ...] = FLEET_COLUMNS) -> None:
        """Write all devices, including missing ones, as CSV (UTF-8, a header, a line each), one device at a time."""
        unknown = set(columns) - set(FLEET_COLUMNS)
        if unknown or not columns:
            raise ValueError(f"columns must be some of {', '.join(FLEET_COLUMNS)}, not {', '.join(columns) or 'none'}")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([getattr(device, column) for column in columns] for device in self)


def _rollout_order(numbers: list[int], place: int) -> int:
    return numbers[(_ROLLOUT_AT + place) % len(numbers)]


def _reported_modules(product: SimulatedProduct, numbers: list[int], day: int) -> tuple[ModuleVersion, ...]:
    """Return the modules of an ordinary device: ``default`` always, the product's other modules usually."""
    return tuple(
        module.version(numbers[2 * place + 1], day, _rollout_order(numbers, place))
        for place, module in enumerate(product.modules)
        if numbers[2 * place] < module.report_fraction
    )


def _exact_modules(product: SimulatedProduct, count: int, numbers: list[int]) -> tuple[ModuleVersion, ...]:
    """Return ``count`` modules: the product's own first, then plug-ins."""
    own = [module.version(numbers[2 * place + 1]) for place, module in enumerate(product.modules[:count])]
    plugins = (
        ModuleVersion(f"plugin-{number:05d}", version_text(number % 6, (numbers[0] + number * 7) % 30))
        for number in range(len(own), count)
    )
    return (*own, *plugins)
