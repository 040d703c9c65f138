"""Columns of fleet files: their names, where a header has them, and the rows that readers yield."""

import re
from collections.abc import Callable, Iterable, Sequence

from auditor.errors import FleetError
from auditor.fleet.names import BadRowError, show

COLUMNS = ("product_key", "device_name", "iot_id")

DISCOVERY_COLUMNS = ("device_status", "utc_create", "utc_modified")
"""Columns of a fleet file that ``auditor fleet`` wrote."""

ALL_COLUMNS = (*COLUMNS, *DISCOVERY_COLUMNS)

FileRow = tuple[tuple[str, ...], int]
"""A row: its text for each of ``ALL_COLUMNS``, empty without one, and its line (of Parquet its number)."""

BadRowReport = Callable[[int, BadRowError], None]
"""Receives the line of a row that cannot be read, and what is wrong with it."""


def _normalize(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


_OURS = {_normalize(name): name for name in ALL_COLUMNS}


def column_of(name: str) -> str | None:
    """Return which of our columns a name means, in any case and with any separators; None: another one."""
    return _OURS.get(_normalize(name))


def is_column_name(cell: str) -> bool:
    """Return whether a cell is the name of a column that identifies devices."""
    return column_of(cell) in COLUMNS


def identifying_columns(header: Iterable[str]) -> set[str]:
    """Return which columns of a header identify devices, alone or together."""
    return {name for each in header if (name := column_of(each)) in COLUMNS}


def is_header(cells: Iterable[str]) -> bool:
    """Return whether cells are names of columns that are enough to identify a device."""
    names = identifying_columns(cells)
    return "iot_id" in names or {"product_key", "device_name"} <= names


def is_same_header(cells: Sequence[str], header: Sequence[str]) -> bool:
    """Return whether cells are the names of a header, in any order and spelling."""
    return sorted(map(_normalize, cells)) == sorted(map(_normalize, header))


def is_of_discovery(names: Iterable[str]) -> bool:
    """Return whether a file with these columns was written by ``auditor fleet``."""
    return set(ALL_COLUMNS) <= set(names)


def locate_columns(header: Sequence[str], at: str) -> tuple[int | None, ...]:
    """Return the position of each of our columns in a header; None without one. ``at`` is its place, for errors.

    Raises:
        FleetError: a column occurs twice, or none identifies a device.
    """
    names = [column_of(each) for each in header]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise FleetError(f"{at}: the column {name} occurs twice; leave one of them out")
    if not is_header(header):
        has = show(", ".join(header)) if any(header) else "none"
        raise FleetError(f"{at}: needs the columns product_key and device_name, or iot_id; it has {has}")
    return tuple(names.index(name) if name in names else None for name in ALL_COLUMNS)
