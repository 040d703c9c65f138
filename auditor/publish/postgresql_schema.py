"""The schema of the PostgreSQL destination: tables of ``publish.tables``, keys, comments and views, and its migration.

The version of the tables is in the table ``tables_version``. A schema of an older version gets the columns that it
lacks, and the views of this version. One of a newer version is refused.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.errors import DestinationError
from auditor.publish.tables import TABLES, TABLES_VERSION, ColumnType, TableColumn
from auditor.storage.database import sql_identifier, sql_literal

if TYPE_CHECKING:
    import psycopg

POSTGRESQL_TYPES: dict[ColumnType, str] = {
    "text": 'text COLLATE "C"',
    "integer": "bigint",
    "number": "double precision",
    "boolean": "boolean",
    "date": "date",
    "timestamp": "timestamptz",
    "attributes": "jsonb",
}
"""Types of the columns. Text is ordered by its bytes, as in DuckDB, on every system."""

CURRENT_RUNS = """SELECT DISTINCT ON (audit) * FROM {schema}.runs
  WHERE covers_fleet AND state IN ('complete', 'within_tolerance')
  ORDER BY audit, started_at DESC, run DESC"""


def create_statements(schema: str) -> Iterator[str]:
    """Yield the SQL statements that create a schema, or migrate one of an older version; they can be repeated."""
    quoted, separator = sql_identifier(schema), ",\n  "
    yield f"CREATE SCHEMA IF NOT EXISTS {quoted}"
    yield f"CREATE TABLE IF NOT EXISTS {quoted}.tables_version (version integer NOT NULL)"
    for name, table in TABLES.items():
        columns = separator.join(_definition(column) for column in table.columns)
        key = ", ".join(table.key)
        yield f"CREATE TABLE IF NOT EXISTS {quoted}.{name} (\n  {columns},\n  PRIMARY KEY ({key})\n)"
        # In rows of older runs a new column has no value.
        added = (f"ADD COLUMN IF NOT EXISTS {column.name} {POSTGRESQL_TYPES[column.type]}" for column in table.columns)
        yield f"ALTER TABLE {quoted}.{name}\n  {separator.join(added)}"
        yield f"COMMENT ON TABLE {quoted}.{name} IS {sql_literal(table.description)}"
        for column in table.columns:
            yield f"COMMENT ON COLUMN {quoted}.{name}.{column.name} IS {sql_literal(column.description)}"
    yield from _view_statements(quoted)
    yield f"DELETE FROM {quoted}.tables_version"
    yield f"INSERT INTO {quoted}.tables_version VALUES ({TABLES_VERSION})"


def _definition(column: TableColumn) -> str:
    return f"{column.name} {POSTGRESQL_TYPES[column.type]}{' NOT NULL' if column.required else ''}"


def _view_statements(quoted: str) -> Iterator[str]:
    """Yield the statements of the views of each audit's newest run.

    A view that exists is replaced, and not dropped: views that users made of it, and privileges, remain. That permits
    further columns at its end, which is where ``ALTER TABLE`` adds them.
    """
    for name, table in TABLES.items():
        query = CURRENT_RUNS.format(schema=quoted)
        if name != "runs":
            query = f"SELECT rows.* FROM {quoted}.{name} AS rows JOIN {quoted}.current_runs USING (run)"
        yield f"CREATE OR REPLACE VIEW {quoted}.current_{name} AS {query}"
        comment = f"{table.description}, of the newest successful run of each audit that covers its fleet"
        yield f"COMMENT ON VIEW {quoted}.current_{name} IS {sql_literal(comment)}"


def read_version(connection: "psycopg.Connection", schema: str) -> int | None:
    """Return the version of the tables of a schema; None: the schema has none."""
    table = f"{sql_identifier(schema)}.tables_version"
    row = connection.execute("SELECT to_regclass(%s)", [table]).fetchone()
    if row is None or row[0] is None:
        return None
    row = connection.execute(f"SELECT max(version) FROM {table}".encode()).fetchone()
    return None if row is None else row[0]


def migrate(connection: "psycopg.Connection", schema: str) -> None:
    """Create or migrate a schema, in the transaction of the caller."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DestinationError(f"its encoding is {encoding}; create a database with the encoding UTF8")
    for statement in create_statements(schema):
        connection.execute(statement.encode())
