"""The database of the tests themselves: opening one takes 30 ms of a processor, and another connection to it one."""

from functools import cache

import duckdb


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to the database of this process; tables and views must be temporary, so that it stays empty."""
    return _database().cursor()
