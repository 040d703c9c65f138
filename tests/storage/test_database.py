"""How DuckDB is opened."""

import subprocess
import sys

import duckdb
import pytest

from auditor.storage.database import with_enough_memory


def test_it_draws_no_progress_on_standard_output_where_data_goes() -> None:
    # With `-c` as in a notebook DuckDB takes a program for a person, and draws what takes more than two seconds.
    program = (
        "from auditor.database import open_database; database = open_database(); "
        "print(database.execute(\"SELECT current_setting('enable_progress_bar')\").fetchone())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "(False,)\n"


def test_more_memory_is_taken_step_by_step_where_a_step_is_not_enough() -> None:
    taken: list[str] = []

    def work(memory: str) -> str:
        taken.append(memory)
        if len(taken) < 3:
            raise duckdb.OutOfMemoryException
        return memory

    assert with_enough_memory(work) == taken[-1]
    assert taken == ["64MB", "96MB", "256MB"]


def test_what_the_most_memory_is_not_enough_for_is_told() -> None:
    def work(_memory: str) -> None:
        raise duckdb.OutOfMemoryException

    with pytest.raises(duckdb.OutOfMemoryException):
        with_enough_memory(work)
