"""Journal of a discovery by the search index: the rows that it returned, and where each product continues.

It is a discovery journal whose lines have the versions of devices as well. A page of many versions has several lines.
The last one has the position after the page, so that a resume continues there, and no row is in it twice. A page whose
last line is missing does not count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson

from auditor.config.settings import FleetSource
from auditor.fleet.discovery_journal import DiscoveryJournal, ProductDiscovery, Record
from auditor.models import IndexedDevice
from auditor.runs.attributes import LISTED_ATTRIBUTES, MAX_ATTRIBUTES
from auditor.storage.database import MAX_LINE_BYTES

MAX_DEVICES_BYTES = MAX_LINE_BYTES // 2
"""Bytes of the devices of one line. A device with more has no versions in the journal, so it is queried itself."""

GROUPS = "groups"
"""Attribute with the ids of a device's groups, separated by commas."""


@dataclass(slots=True)
class TieFrame:
    """Devices that are read by their names, since more were created at one time than a page has: they are a tie.

    They are divided by the next character of their names.

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
        after: time of creation, as the platform writes it: devices that were created later are next. None: all devices.
        latest: names of those devices that the last page had already, since it ended among devices of one time.
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
        self._page_rows = 0  # in the lines of a page before its last one

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
        origin = {"reading": product.reading, "reread": False, "read_at": read_at}
        line = {"kind": "devices", "product_key": product.product.product_key, **origin}
        *others, last = _divide(self._device(row) for row in rows)
        for devices in others:
            self._record({**line, "ended": False, "devices": devices, "position": None})
        self._record({**line, "ended": ended, "devices": last, "position": asdict(position)})

    def _device(self, row: IndexedDevice) -> dict[str, Any]:
        device: dict[str, Any] = msgspec.to_builtins(row)
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

    def _replay(self) -> None:
        super()._replay()
        self._page_rows = 0  # an incomplete page at the end was removed

    def _apply(self, record: Record) -> bool:
        if "position" not in record:
            return super()._apply(record)
        key, devices = record["product_key"], record["devices"]
        product = self.products[key]
        for device in devices:
            for name in device["attributes"]:
                self._is_kept(name)
        self._page_rows += len(devices)
        if record["position"] is None:
            return False
        self._positions[key] = msgspec.convert(record["position"], IndexPosition)
        product.rows += self._page_rows
        product.indexed = (product.indexed or 0) + self._page_rows
        self._page_rows = 0
        if record["ended"]:
            product.pager.phase = "ended"
        self.pages += 1
        return True

    def _restart(self, product_key: str | None) -> None:
        super()._restart(product_key)
        if product_key is not None:
            self._positions.pop(product_key, None)


def _divide(devices: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the devices of each line of a page: at least one line, and devices that fit into it."""
    line: list[dict[str, Any]] = []
    size = 0
    for device in devices:
        length = len(orjson.dumps(device))
        for name, empty in (("modules", None), ("attributes", {})):
            if length > MAX_DEVICES_BYTES:
                device[name] = empty
                length = len(orjson.dumps(device))
        if line and size + length > MAX_DEVICES_BYTES:
            yield line
            line, size = [], 0
        line.append(device)
        size += length
    yield line
