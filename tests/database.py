"""The database of the tests themselves: opening one takes 30 ms of a processor, and another connection to it one."""

import os
import signal
import threading
from functools import cache
from typing import NoReturn

import duckdb


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to the database of this process; tables and views must be temporary, so that it stays empty."""
    return _database().cursor()


def run_interrupted_query(database: duckdb.DuckDBPyConnection | None = None) -> NoReturn:
    """Run a query that would take days, in the main thread, and send this process SIGINT meanwhile."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    (connect() if database is None else database).execute(
        "SELECT count(*) FROM range(1_000_000_000_000_000) WHERE range % 7 = 3"
    )
    raise AssertionError("the query ended")
