"""Journal of a discovery by the search index: the rows that it returned, and where each product continues.

It is a discovery journal whose lines have the versions of devices as well. Each line has the position after its page,
so that a resume continues there, and no row is in it twice.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from auditor.config.settings import FleetSource
from auditor.fleet.discovery_journal import DiscoveryJournal, ProductDiscovery, Record
from auditor.models import IndexedDevice
from auditor.runs.attributes import LISTED_ATTRIBUTES, MAX_ATTRIBUTES

GROUPS = "groups"
"""Attribute with the ids of a device's groups, separated by commas."""


@dataclass(slots=True)
class TieFrame:
    """Devices created at one time, more than a page has, that are divided by the next character of their names.

    Attributes:
        prefix: what their names begin with.
        remaining: how many of them were not read yet, as the index counted them.
        characters: next characters that were not requested yet.
    """

    prefix: str
    remaining: int
    characters: list[str]


@dataclass(slots=True)
class IndexPosition:
    """Where the reading of a product continues.

    Attributes:
        after: devices created later than this are next, as the platform writes times; None: all.
        latest: names of devices that were read although they were created later, since a page ended among them.
        tied_at: time at which more devices were created than a page has, while these are read.
        frames: how these are divided.
    """

    after: str | None = None
    latest: list[str] = field(default_factory=list)
    tied_at: str | None = None
    frames: list[TieFrame] = field(default_factory=list)


class IndexJournal(DiscoveryJournal):
    """The journal of one account's discovery by the index."""

    def __init__(self, path: Path, fleet: FleetSource) -> None:
        super().__init__(path, fleet)
        self._positions: dict[str, IndexPosition] = {}
        self._names: set[str] = set()

    def position(self, product_key: str) -> IndexPosition:
        """Return where a product continues."""
        return self._positions.get(product_key, IndexPosition())

    def record_rows(
        self,
        product: ProductDiscovery,
        rows: Iterable[IndexedDevice],
        position: IndexPosition,
        *,
        read_at: float,
        ended: bool = False,
    ) -> None:
        """Record the new rows of a page that was read at a time, and where the product continues."""
        devices = [self._device(row) for row in rows]
        origin = {"reading": product.reading, "reread": False, "read_at": read_at, "ended": ended}
        key = product.product.product_key
        self._record(
            {"kind": "devices", "product_key": key, **origin, "devices": devices, "position": asdict(position)}
        )

    def _device(self, row: IndexedDevice) -> dict[str, Any]:
        device = asdict(row)
        attributes = dict(row.tags)
        if row.groups:
            attributes.setdefault(GROUPS, ",".join(row.groups))
        device["attributes"] = {name: text for name, text in attributes.items() if text and self._is_kept(name)}
        del device["tags"], device["groups"]
        return device

    def _is_kept(self, name: str) -> bool:
        """Return whether an attribute is kept: a fleet has so many names at most, and none that the platform lists."""
        if name not in self._names and len(self._names) < MAX_ATTRIBUTES and name not in LISTED_ATTRIBUTES:
            self._names.add(name)
        return name in self._names

    def _apply(self, record: Record) -> None:
        if "position" not in record:
            super()._apply(record)
            return
        key, devices = record["product_key"], record["devices"]
        product = self.products[key]
        for device in devices:
            for name in device["attributes"]:
                self._is_kept(name)
        self._positions[key] = msgspec.convert(record["position"], IndexPosition)
        product.rows += len(devices)
        if record["ended"]:
            product.pager.phase = "ended"
        self.pages += 1

    def _restart(self, product_key: str | None) -> None:
        super()._restart(product_key)
        if product_key is not None:
            self._positions.pop(product_key, None)
