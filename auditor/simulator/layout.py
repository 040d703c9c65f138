"""Which product a device belongs to and which devices are missing: rules that are read both ways, at any size."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from hashlib import blake2b
from itertools import accumulate

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
