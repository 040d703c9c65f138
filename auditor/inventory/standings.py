"""How versions stand to each other, for a query: each distinct pair is compared once, outside of the database."""

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
    with path.open("w", encoding="ascii") as file:
        while batch := result.fetchmany(1_000):
            file.writelines(
                f"{one} {other} {compare_versions(version, against)}\n" for one, other, version, against in batch
            )
    columns = "{'one': 'BIGINT', 'other': 'BIGINT', 'standing': 'VARCHAR'}"
    database.execute(
        f"CREATE OR REPLACE TABLE standings AS FROM read_csv({quoted_to_read(path)}, delim=' ', header=false, "
        f"auto_detect=false, columns={columns}, {BLOCKS})"
    )
