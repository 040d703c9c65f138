"""How versions stand to each other, for a query: each distinct pair is compared once, outside of the database."""

from collections.abc import Iterator
from pathlib import Path

import duckdb

from auditor.query.versions import compare_versions
from auditor.storage.database import define_read


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
