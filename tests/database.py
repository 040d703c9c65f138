"""The database of the tests themselves: opening one takes 30 ms of a processor, and another connection to it one."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

import duckdb


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection to the database of this process; tables and views must be temporary, so that it stays empty."""
    return _database().cursor()


LONG_QUERY = "SELECT count(*) FROM range(10_000_000_000) WHERE range % 7 = 3"
"""A query that takes a minute: a test whose interruption is lost fails then, instead of waiting for ever."""


def run_interrupted_query(database: duckdb.DuckDBPyConnection | None = None) -> NoReturn:
    """Run a long query in the main thread, and send this process SIGINT meanwhile."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    (connect() if database is None else database).execute(LONG_QUERY)
    raise AssertionError("the query ended")


@contextmanager
def interrupting(database: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupt what a database executes in this block, again and again: between two queries it has no effect."""
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            database.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
