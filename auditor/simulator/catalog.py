"""Products of a simulated world: their devices, which of these are missing, their OTA modules and versions.

All of it is computed from an index and a seed, in both directions, so a world of any size needs no table.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from itertools import accumulate

from auditor.models import ModuleVersion

FRACTION_SCALE = 1 << 32
"""Denominator of the fractions of a world."""


class Layout:
    """Product of every index of a world, and its place among the product's devices.

    Products take turns in rounds, and each round has one product less, without the last ones first: of four products,
    the first has 4 devices in 10 and the last 1. Missing devices are spread evenly: the places of a product are
    divided into strata with one missing device each, at a random place.

    Args:
        seed: random seed.
        products: number of products.
        devices: number of devices of the world. Those registered later exist.
        missing: fraction of the devices that do not exist, in 1/``FRACTION_SCALE``.
        existing: indices that always exist.
    """

    def __init__(self, seed: int, products: int, devices: int, missing: int, existing: Iterable[int]) -> None:
        self._products, self._devices, self._missing = products, devices, missing
        self._rounds = (0, *accumulate(range(products, 1, -1)))
        self._cycle = self._rounds[-1] + 1
        self._hash = blake2b(f"missing {seed} ".encode(), digest_size=8)
        # By product: the places that would be missing otherwise.
        self._existing: dict[int, list[int]] = {}
        for index in sorted(existing):
            product, place = self.position_of(index)
            if index < devices and self._is_selected(product, place):
                self._existing.setdefault(product, []).append(place)

    def position_of(self, index: int) -> tuple[int, int]:
        """Return the number of the product of ``index``, and its place among the product's devices, from 0."""
        cycles, offset = divmod(index, self._cycle)
        turn = bisect_right(self._rounds, offset) - 1
        product = offset - self._rounds[turn]
        return product, cycles * (self._products - product) + turn

    def index_at(self, product: int, place: int) -> int:
        """Return the index at ``place`` of a product: the inverse of ``position_of``."""
        cycles, turn = divmod(place, self._products - product)
        return cycles * self._cycle + self._rounds[turn] + product

    def count_before(self, product: int, devices: int) -> int:
        """Return how many of the first ``devices`` indices belong to a product."""
        cycles, rest = divmod(devices, self._cycle)
        turns = bisect_left(range(self._products - product), rest, key=lambda turn: self._rounds[turn] + product)
        return cycles * (self._products - product) + turns

    def exists(self, index: int, product: int, place: int) -> bool:
        """Return whether the device at ``index`` exists, which is at ``place`` of the product."""
        can_be_missing = index < self._devices and place not in self._existing.get(product, ())
        return not (can_be_missing and self._is_selected(product, place))

    def missing_before(self, product: int, place: int) -> int:
        """Return how many of the product's first ``place`` devices do not exist."""
        place = min(place, self.count_before(product, self._devices))
        stratum = self._stratum(place)
        if stratum < 0:
            return 0
        missing = stratum + (self._missing_place(product, stratum) < place)
        return missing - bisect_left(self._existing.get(product, ()), place)

    def _is_selected(self, product: int, place: int) -> bool:
        stratum = self._stratum(place)
        return stratum >= 0 and self._missing_place(product, stratum) == place

    def _stratum(self, place: int) -> int:
        """Return the number of the stratum of ``place``; -1 if no device is missing."""
        return ((place + 1) * self._missing - 1) // FRACTION_SCALE

    def _missing_place(self, product: int, stratum: int) -> int:
        """Return the place of a stratum's missing device."""
        first, after = stratum * FRACTION_SCALE // self._missing, (stratum + 1) * FRACTION_SCALE // self._missing
        digest = self._hash.copy()
        digest.update(product.to_bytes(8, "big") + stratum.to_bytes(8, "big"))
        return first + int.from_bytes(digest.digest(), "big") % (after - first)


_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# All special characters of device names, because each is escaped differently in a signed query.
_PREFIXES = ("dev-", "lamp_", "gw@hall:", "meter.")

_OWN_MODULES = ("ble", "zigbee", "mcu", "wifi", "cat1", "Sensor-Hub", "z_wave", "display.2")

_SHARE_SCALE = 1 << 16
_NEVER_UPDATED, _DAILY_ROLLBACKS = _SHARE_SCALE // 50, _SHARE_SCALE // 500
"""Fraction of devices that an update never reaches, and of those that are rolled back by a version each day."""


@dataclass(frozen=True, slots=True)
class SimulatedModule:
    """One module of a product, and its versions in the field. Fractions are in 1/65536.

    Attributes:
        report_fraction: fraction of the devices that report this module.
        versions: the newest first, one object for all devices that run it.
        bounds: upper end of each version's share, ascending.
        next_version: the release that is rolled out from day 1 on.
        daily_fraction: fraction of the devices that it reaches each day.
    """

    report_fraction: int
    versions: tuple[ModuleVersion, ...]
    bounds: tuple[int, ...]
    next_version: ModuleVersion
    daily_fraction: int

    def version(self, number: int, day: int = 0, order: int = 0) -> ModuleVersion:
        """Return the version of a device on a day.

        Args:
            number: random number of the device, 0 to 65535.
            day: a few of the last devices are rolled back by a version each day.
            order: position of the device in the rollout, 0 to 65535.
        """
        if order < min(day * self.daily_fraction, _SHARE_SCALE - _NEVER_UPDATED):
            return self.next_version
        place = bisect_right(self.bounds, number)
        if order >= _SHARE_SCALE - min(day * _DAILY_ROLLBACKS, _NEVER_UPDATED):
            place = min(place + 1, len(self.versions) - 1)
        return self.versions[place]

    def update_day(self, order: int) -> int | None:
        """Return the day on which the rollout reaches a device, by its position in it; None: never."""
        if not self.daily_fraction or order >= _SHARE_SCALE - _NEVER_UPDATED:
            return None
        return order // self.daily_fraction + 1

    @property
    def last_update_day(self) -> int | None:
        """The day on which the rollout reaches its last device; None: there is no rollout."""
        return self.update_day(_SHARE_SCALE - _NEVER_UPDATED - 1)


@dataclass(frozen=True, slots=True)
class SimulatedProduct:
    """One simulated product."""

    product_key: str
    product_name: str
    prefix: str
    modules: tuple[SimulatedModule, ...]


def make_products(seed: int, count: int) -> tuple[SimulatedProduct, ...]:
    """Return ``count`` products with different keys, always the same for one seed."""
    products: dict[str, SimulatedProduct] = {}
    number = 0
    while len(products) < count:
        product = _make_product(seed, number, _PREFIXES[len(products) % len(_PREFIXES)])
        products.setdefault(product.product_key, product)
        number += 1
    return tuple(products.values())


def _make_product(seed: int, number: int, prefix: str) -> SimulatedProduct:
    digest = blake2b(f"product {seed} {number}".encode()).digest()
    names = list(_OWN_MODULES)
    own = [names.pop(digest[20 + turn] % len(names)) for turn in range(digest[19] % 5)]
    return SimulatedProduct(
        product_key="k1" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:8]),
        product_name=f"Simulated product {number + 1}",
        prefix=prefix,
        modules=tuple(_make_module(f"{seed} {number}", name) for name in ("default", *own)),
    )


def _make_module(product: str, name: str) -> SimulatedModule:
    """Return a module with the distribution of real fleets: one dominant version, one lagging, and a tail."""
    digest = blake2b(f"module {product} {name}".encode()).digest()
    current, lagging, tail = 60 + digest[0] % 21, 10 + digest[1] % 11, 2 + digest[2] % 5
    weights = [float(current), float(lagging), *((100 - current - lagging) / tail for _ in range(tail))]
    shape, newest = digest[3] % 6, 12 + digest[4] % 20
    bounds = [round(total / 100 * _SHARE_SCALE) for total in accumulate(weights)]
    bounds[-1] = _SHARE_SCALE
    return SimulatedModule(
        report_fraction=_SHARE_SCALE if name == "default" else round((0.8 + digest[5] % 20 / 100) * _SHARE_SCALE),
        versions=tuple(ModuleVersion(name, version_text(shape, newest - age)) for age in range(len(weights))),
        bounds=tuple(bounds),
        next_version=ModuleVersion(name, version_text(shape, newest + 1)),
        daily_fraction=digest[6] % 4 * _SHARE_SCALE // 20,
    )


def version_text(shape: int, release: int) -> str:
    """Return the text of the ``release``-th version (from 0) in one of the six formats that vendors use."""
    match shape:
        case 0:
            return f"{1 + release // 10}.{release % 10}"
        case 1:
            return f"1.{release // 4}.{release % 4}"
        case 2:
            return f"V2.0.{release // 5}.{release % 5}"
        case 3:
            return f"2.{release:02d}"
        case 4:
            return f"{date(2023, 1, 15) + timedelta(days=14 * release):%Y%m%d}"
        case _:
            return f"1.4.{release // 3}" + (f"-hotfix{release % 3}" if release % 3 else "")
