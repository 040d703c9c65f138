"""Attributes of devices: what a fleet file or the platform says of a device besides its names, as named texts.

They are one column of ``fleet.parquet`` and ``devices.parquet``, since their names may be those of our columns. An
attribute without a text is not stored. Devices without any have NULL.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from auditor.errors import RunFolderError
from auditor.runs.folder import DEVICES
from auditor.storage.database import Database, parquet, scalar, sql_identifier, sql_literal

ATTRIBUTES, ATTRIBUTES_TYPE = "attributes", "MAP(VARCHAR, VARCHAR)"

LISTED_ATTRIBUTES = ("nickname", "product_name", "node_type")
"""Attributes that the platform lists."""

MAX_ATTRIBUTES = 32
"""Further columns of a fleet file: each is an attribute of the devices."""

MAX_ATTRIBUTE_NAMES = 3_500
"""Names of attributes of all devices, however many accounts they have: each becomes a column."""


def attributes_from_json(column: str) -> str:
    """Return the SQL of the attributes in a column of JSON objects."""
    return f"""json_transform({column}, '"{ATTRIBUTES_TYPE}"')"""


def attributes_from_columns(columns: Iterable[str]) -> str:
    """Return the SQL of attributes whose names and texts are those of columns; NULL if no column has a text."""
    entries = ", ".join(f"{{'k': {sql_literal(name)}, 'v': {sql_identifier(name)}}}" for name in columns)
    given = f"list_filter([{entries}], lambda each: each.v <> '')"
    return f"nullif(map_from_entries({given}), MAP {{}}::{ATTRIBUTES_TYPE})"


def attribute_sql(name: str, prefix: str = "") -> str:
    """Return the SQL of the text of an attribute; NULL without one. ``prefix`` is as in ``d.``."""
    return f"{prefix}{ATTRIBUTES}[{sql_literal(name)}]"


def has_attribute(database: Database, name: str, view: str = "devices") -> bool:
    """Return whether a device of a view has an attribute. Reading ends with the first one that has it."""
    query = f"SELECT count(*) FROM (SELECT 1 FROM {view} WHERE {attribute_sql(name)} IS NOT NULL LIMIT 1)"
    return scalar(database, query) > 0


def attribute_names(database: Database, view: str = "devices") -> list[str]:
    """Return the names of all attributes that a device of a view has, sorted.

    Raise RunFolderError if there are more than the fleet files of all accounts (and runs, if the view has several) can
    have.
    """
    names = f"SELECT DISTINCT unnest(map_keys({ATTRIBUTES})) AS name FROM {view}"
    found = database.execute(f"FROM ({names} LIMIT {MAX_ATTRIBUTE_NAMES + 1}) ORDER BY name").fetchall()
    per_file = MAX_ATTRIBUTES + len(LISTED_ATTRIBUTES)
    if len(found) > per_file:
        files = f"SELECT DISTINCT COLUMNS(lambda name: name IN ('account', 'run')) FROM {view}"
        allowed = min(MAX_ATTRIBUTE_NAMES, per_file * scalar(database, f"SELECT count(*) FROM ({files})"))
        if len(found) > allowed:
            raise RunFolderError(
                f"{DEVICES}: its devices have more than {allowed:,} names of attributes; no audit writes such a file"
            )
    return [str(name) for (name,) in found]


def define_attribute_views(database: Database, devices: Path) -> None:
    """Replace the view ``devices`` by one of the file ``devices`` with a column for each attribute.

    Define ``device_modules``, beside the view ``modules``: its rows, with all columns of their devices.
    """
    rows = parquet(devices)
    names = attribute_names(database, rows)
    described = database.execute(f"DESCRIBE FROM {rows}").fetchall()
    taken = [*(str(column) for column, *_ in described), "module_name", "module_version"]
    database.execute(f"CREATE OR REPLACE VIEW devices AS SELECT *{attribute_cells(names, taken)} FROM {rows}")
    same = " AND ".join(
        f"m.{name} IS NOT DISTINCT FROM d.{name}" for name in ("account", "product_key", "device_name", "iot_id")
    )
    database.execute(
        "CREATE VIEW device_modules AS SELECT m.module_name, m.module_version, d.* "
        f"FROM modules m JOIN devices d ON {same}"
    )


def attribute_columns(names: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Return the name of a column for each attribute: its own, or ``attributes.NAME`` if that is taken.

    Names are the same regardless of case, as in SQL.
    """
    used, columns = {name.lower() for name in taken}, {}
    for name in names:
        column = name
        while column.lower() in used:
            column = f"{ATTRIBUTES}.{column}"
        used.add(column.lower())
        columns[name] = column
    return columns


def attribute_cells(names: Sequence[str], taken: Collection[str], prefix: str = "") -> str:
    """Return the SQL of a column for each attribute, each with a comma in front; see ``attribute_columns``."""
    columns = attribute_columns(names, taken)
    return "".join(f", {attribute_sql(name, prefix)} AS {sql_identifier(column)}" for name, column in columns.items())
