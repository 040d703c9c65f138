"""Which product a device belongs to and which devices are missing: rules that are read both ways, at any size.

What the simulated products are: their keys, how they name devices, their OTA modules and who runs which version.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from itertools import accumulate

from auditor.models import ModuleVersion

CERTAIN = 1 << 32
"""A part of 1, as the draws of a world count parts."""


class Layout:
    """Where each index of a world stands in its product, without a table of devices.

    Products take turns in rounds, and each round leaves out one product more, the last ones first: of four, the
    first has 4 devices in 10, the last 1. The missing are spread evenly: a product's places are cut into strata of
    one missing device each, drawn within it.

    Args:
        seed: of the draws.
        products: how many.
        devices: of the world; whatever is registered after them exists.
        missing: the part of the devices that the platform does not know, in 1/2^32.
        kept: indices that exist whatever is drawn.
    """

    def __init__(self, seed: int, products: int, devices: int, missing: int, kept: Iterable[int]) -> None:
        self._products, self._devices, self._missing = products, devices, missing
        self._rounds = (0, *accumulate(range(products, 1, -1)))
        self._cycle = self._rounds[-1] + 1
        self._dice = blake2b(f"missing {seed} ".encode(), digest_size=8)
        # One list for each product that has any: the places that would be missing.
        self._kept: dict[int, list[int]] = {}
        for index in sorted(kept):
            product, place = self.place_of(index)
            if index < devices and self._is_drawn(product, place):
                self._kept.setdefault(product, []).append(place)

    def place_of(self, index: int) -> tuple[int, int]:
        """The number of the product that ``index`` belongs to, and its place among the product's devices, from 0."""
        cycles, slot = divmod(index, self._cycle)
        turn = bisect_right(self._rounds, slot) - 1
        product = slot - self._rounds[turn]
        return product, cycles * (self._products - product) + turn

    def index_at(self, product: int, place: int) -> int:
        """The index that stands at ``place`` of a product: the inverse of ``place_of``."""
        cycles, turn = divmod(place, self._products - product)
        return cycles * self._cycle + self._rounds[turn] + product

    def places(self, product: int, devices: int) -> int:
        """How many of the first ``devices`` indices belong to a product."""
        cycles, rest = divmod(devices, self._cycle)
        turns = bisect_left(range(self._products - product), rest, key=lambda turn: self._rounds[turn] + product)
        return cycles * (self._products - product) + turns

    def exists(self, index: int, product: int, place: int) -> bool:
        """Whether the platform knows the device at ``index``, which stands at ``place`` of the product."""
        return index >= self._devices or not self._is_drawn(product, place) or place in self._kept.get(product, ())

    def missing_before(self, product: int, place: int) -> int:
        """How many of the product's first ``place`` devices the platform does not know."""
        place = min(place, self.places(product, self._devices))
        stratum = self._stratum(place)
        if stratum < 0:
            return 0
        drawn = stratum + (self._drawn(product, stratum) < place)
        return drawn - bisect_left(self._kept.get(product, ()), place)

    def _is_drawn(self, product: int, place: int) -> bool:
        stratum = self._stratum(place)
        return stratum >= 0 and self._drawn(product, stratum) == place

    def _stratum(self, place: int) -> int:
        """The number of the stratum that holds ``place``; -1 if nothing is missing."""
        return ((place + 1) * self._missing - 1) // CERTAIN

    def _drawn(self, product: int, stratum: int) -> int:
        """The place of a stratum's missing device."""
        first, after = stratum * CERTAIN // self._missing, (stratum + 1) * CERTAIN // self._missing
        dice = self._dice.copy()
        dice.update(product.to_bytes(8, "big") + stratum.to_bytes(8, "big"))
        return first + int.from_bytes(dice.digest(), "big") % (after - first)


_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# Every mark that a device name may hold, since each of them is escaped differently in a signed query.
_PREFIXES = ("dev-", "lamp_", "gw@hall:", "meter.")


_OWN_MODULES = ("ble", "zigbee", "mcu", "wifi", "cat1", "Sensor-Hub", "z_wave", "display.2")


_SHARE_SCALE = 1 << 16


_STUCK, _BACK_EACH_DAY = _SHARE_SCALE // 50, _SHARE_SCALE // 500
"""Devices that an update never reaches, and those of them that go back by a version each day."""


@dataclass(frozen=True, slots=True)
class ModuleCatalogue:
    """One module of a product: how likely a device has reported it, and the versions in the field.

    Attributes:
        reported: the part of devices, in 1/65536, that reported this module.
        versions: what a device may run, one object for all devices that run it; the newest first.
        bounds: for each version the upper end of its share, in 1/65536, rising.
        coming: the release that is rolled out from day 1 on.
        each_day: the part of devices, in 1/65536, that it reaches each day.
    """

    reported: int
    versions: tuple[ModuleVersion, ...]
    bounds: tuple[int, ...]
    coming: ModuleVersion
    each_day: int

    def version(self, draw: int, day: int = 0, turn: int = 0) -> ModuleVersion:
        """What a device runs on a day that drew ``draw`` and is reached by updates at ``turn``, each 0 to 65535.

        Of the devices at the end of the queue a few go back by a version each day.
        """
        if turn < min(day * self.each_day, _SHARE_SCALE - _STUCK):
            return self.coming
        place = bisect_right(self.bounds, draw)
        if turn >= _SHARE_SCALE - min(day * _BACK_EACH_DAY, _STUCK):
            place = min(place + 1, len(self.versions) - 1)
        return self.versions[place]


@dataclass(frozen=True, slots=True)
class Product:
    """One simulated product."""

    product_key: str
    product_name: str
    prefix: str
    modules: tuple[ModuleCatalogue, ...]


def make_products(seed: int, count: int) -> tuple[Product, ...]:
    """``count`` products with keys of their own: always the same ones for the same seed."""
    made: dict[str, Product] = {}
    number = 0
    while len(made) < count:
        product = _product(seed, number, _PREFIXES[len(made) % len(_PREFIXES)])
        made.setdefault(product.product_key, product)
        number += 1
    return tuple(made.values())


def _product(seed: int, number: int, prefix: str) -> Product:
    dice = blake2b(f"product {seed} {number}".encode()).digest()
    names = list(_OWN_MODULES)
    own = [names.pop(dice[20 + turn] % len(names)) for turn in range(dice[19] % 5)]
    return Product(
        product_key="k1" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in dice[:8]),
        product_name=f"Simulated product {number + 1}",
        prefix=prefix,
        modules=tuple(
            _module(name, blake2b(f"module {seed} {number} {name}".encode()).digest()) for name in ("default", *own)
        ),
    )


def _module(name: str, dice: bytes) -> ModuleCatalogue:
    """A module's versions with the skew of fleets in the field: one rules, one lags behind, and there is a tail."""
    current = 60 + dice[0] % 21
    lagging = 10 + dice[1] % 11
    tail = 2 + dice[2] % 5
    weights = [float(current), float(lagging), *((100 - current - lagging) / tail for _ in range(tail))]
    shape = dice[3] % 6
    newest = 12 + dice[4] % 20
    bounds = [round(total / 100 * _SHARE_SCALE) for total in accumulate(weights)]
    bounds[-1] = _SHARE_SCALE
    return ModuleCatalogue(
        reported=_SHARE_SCALE if name == "default" else round((0.8 + dice[5] % 20 / 100) * _SHARE_SCALE),
        versions=tuple(ModuleVersion(name, version_text(shape, newest - age)) for age in range(len(weights))),
        bounds=tuple(bounds),
        coming=ModuleVersion(name, version_text(shape, newest + 1)),
        each_day=dice[6] % 4 * _SHARE_SCALE // 20,
    )


def version_text(shape: int, release: int) -> str:
    """The text of a product's ``release``-th version (from 0) in one of the six shapes that vendors write."""
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
