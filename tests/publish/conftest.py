"""One PostgreSQL server for all tests of a process; each test has a database of its own."""

import itertools
from collections.abc import Iterator

import pytest

from tests.publish.postgresql_server import Server, run_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with run_server() as running:
        yield running


@pytest.fixture
def database(server: Server) -> str:
    """The name of an empty database."""
    name = f"test{next(_numbers)}"
    server.query(f"CREATE DATABASE {name}")
    return name
