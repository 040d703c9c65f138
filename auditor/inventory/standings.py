"""How versions stand to each other, for a query: each distinct pair is compared once, outside of the database."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb

from auditor.database import BLOCKS, quoted_to_read
from auditor.inventory.versions import compare_versions


def define_standings(database: duckdb.DuckDBPyConnection, pairs: str, path: Path) -> None:
    """Defines the table ``standings``: ``one``, ``other``, and how ``one`` stands to ``other`` as ``standing``.

    Args:
        database: where to define it.
        pairs: a query of distinct pairs, as columns one, other (numbers), version, against (the versions).
        path: a file to write meanwhile; it holds numbers alone, for versions may be anything.

    Raises:
        OSError: the file cannot be written.
    """
    result = database.cursor().execute(f"SELECT one, other, version, against FROM ({pairs})")

    def lines() -> Iterator[str]:
        while batch := result.fetchmany(1_000):
            for one, other, version, against in batch:
                yield f"{one} {other} {compare_versions(version, against)}\n"

    columns = "{'one': 'BIGINT', 'other': 'BIGINT', 'standing': 'VARCHAR'}"
    define_read(database, "standings", columns, path, lines())


def define_read(
    database: duckdb.DuckDBPyConnection, table: str, columns: str, path: Path, lines: Iterable[str]
) -> None:
    """Defines a table of what is computed outside of the database.

    Args:
        database: where to define it; a table of that name is replaced.
        table: its name.
        columns: its columns and their types, as a struct of SQL.
        path: a file to write meanwhile.
        lines: its rows: words of ASCII with a space between.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="ascii") as file:
        file.writelines(lines)
    database.execute(
        f"CREATE OR REPLACE TABLE {table} AS FROM read_csv({quoted_to_read(path)}, delim=' ', header=false, "
        f"auto_detect=false, columns={columns}, {BLOCKS})"
    )
