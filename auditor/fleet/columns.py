"""Columns of fleet files: their names, where a header has them, and the rows that readers yield."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import orjson

from auditor.errors import FleetError
from auditor.fleet.names import BadRowError, show, strip_invisible
from auditor.runs.attributes import MAX_ATTRIBUTES

COLUMNS = ("product_key", "device_name", "iot_id")

DISCOVERY_COLUMNS = ("device_status", "utc_create", "utc_modified")
"""Columns of a fleet file that ``auditor fleet`` wrote."""

ALL_COLUMNS = (*COLUMNS, *DISCOVERY_COLUMNS)

MAX_ATTRIBUTE_BYTES = 64 * 1024
"""Bytes of the attributes of one device, as JSON: some thousand devices are in memory at a time."""

FileRow = tuple[tuple[str, ...], int]
"""A row: its text for each of ``ALL_COLUMNS`` and its attributes (see ``encode_attributes``), and its line.

A text is empty where the row has none. The line of Parquet is its number.
"""

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


def encode_attributes(attributes: Mapping[str, str]) -> str:
    """Return attributes as a JSON object, without those that have no text; empty if none is left.

    Raises:
        BadRowError: they are longer than ``MAX_ATTRIBUTE_BYTES``.
    """
    given = {name: text for name, text in attributes.items() if text}
    if not given:
        return ""
    try:
        encoded = orjson.dumps(given)
    except orjson.JSONEncodeError:  # half a character, which JSON Lines can have: it is written as text
        encoded = orjson.dumps({_whole(name): _whole(text) for name, text in given.items()})
    if len(encoded) > MAX_ATTRIBUTE_BYTES:
        longest = max(given, key=lambda name: len(given[name]))
        problem = f"has further columns of more than {MAX_ATTRIBUTE_BYTES:,} bytes, most of them in {show(longest)}"
        raise BadRowError(problem, "Shorten the values, or leave the column out.")
    return encoded.decode()


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def locate_attributes(header: Sequence[str], at: str, *, exact: bool) -> dict[str, int]:
    """Return the position of each attribute in a header: of each column that is not ours and has a name.

    ``exact``: ``auditor fleet`` wrote the file; the account in it is none of its devices' attributes. ``at`` is the
    place of the header, for errors.

    Raises:
        FleetError: two attributes have the same name, or there are too many.
    """
    found: dict[str, int] = {}
    for position, cell in enumerate(header):
        name = strip_invisible(cell)
        if not is_attribute(name, exact=exact):
            continue
        if name in found:
            raise FleetError(f"{at}: the column {show(name)} occurs twice; leave one of them out, or rename it")
        found[name] = position
    refuse_many_attributes(found, at)
    return found


def is_attribute(name: str, *, exact: bool) -> bool:
    """Return whether a name is that of an attribute; see ``locate_attributes``."""
    return bool(name) and column_of(name) is None and not (exact and name in _RUN_COLUMNS)


_RUN_COLUMNS = frozenset({"ordinal", "account"})
"""Further columns of ``fleet.parquet`` and of a file that ``auditor fleet`` wrote."""


def refuse_many_attributes(names: Collection[str], at: str) -> None:
    """Raise FleetError if there are more than ``MAX_ATTRIBUTES`` names."""
    if len(names) > MAX_ATTRIBUTES:
        raise FleetError(
            f"{at}: has {len(names)} columns besides those that name devices, and at most {MAX_ATTRIBUTES} are kept; "
            "leave some of them out"
        )


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
