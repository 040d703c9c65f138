"""DuckDB: how it is opened, scratch databases, literals and keys."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from auditor.errors import RunFolderError
from auditor.storage.database import (
    device_key_sql,
    open_database,
    parquet,
    scalar,
    scratch_database,
    sql_literal,
    with_enough_memory,
)


def test_no_progress_bar_is_printed_on_standard_output() -> None:
    # With `-c` as in a notebook DuckDB takes a program for a person, and draws what takes more than two seconds.
    program = (
        "from auditor.storage.database import open_database; database = open_database(); "
        "print(database.execute(\"SELECT current_setting('enable_progress_bar')\").fetchone())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "(False,)\n"


def test_memory_is_raised_step_by_step() -> None:
    taken: list[str] = []

    def work(memory: str) -> str:
        taken.append(memory)
        if len(taken) < 3:
            raise duckdb.OutOfMemoryException
        return memory

    assert with_enough_memory(work) == taken[-1]
    assert taken == ["64MB", "96MB", "256MB"]


def test_exceeding_the_largest_memory_limit_is_an_error() -> None:
    def work(_memory: str) -> None:
        raise duckdb.OutOfMemoryException

    with pytest.raises(duckdb.OutOfMemoryException):
        with_enough_memory(work)


def test_a_scratch_database_removes_its_folder_and_translates_errors(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "leftover").mkdir(parents=True)
    with scratch_database(work, failure="x cannot be written") as database:
        assert scalar(database, "SELECT 42") == 42
        assert list(work.iterdir()) == []
    assert not work.exists()
    with (
        pytest.raises(RunFolderError, match=r"^x cannot be read: .*missing\.parquet"),
        scratch_database(work, failure="x cannot be read", error=RunFolderError) as database,
    ):
        database.execute(f"FROM {parquet(tmp_path / 'missing.parquet')}")
    assert not work.exists()
    with pytest.raises(OSError, match="no space"), scratch_database(work):
        raise OSError("no space")
    assert not work.exists()


@pytest.mark.parametrize("text", ["it's", "a[1]*?", "", "'; DROP TABLE t"])
def test_a_literal_is_the_text(text: str) -> None:
    with open_database() as database:
        assert database.execute(f"SELECT {sql_literal(text)}").fetchall() == [(text,)]


def test_a_device_key_tells_devices_apart() -> None:
    devices = [
        ("a", "p", "d", None), ("a", "p", "d", "i"), ("a", None, None, "i"), ("ap", "", "d", None), ("a", "p/d", "", None),
    ]  # fmt: skip
    with open_database() as database:
        database.execute("CREATE TABLE t (account VARCHAR, product_key VARCHAR, device_name VARCHAR, iot_id VARCHAR)")
        database.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", devices)
        assert (
            scalar(database, f"SELECT count(DISTINCT {device_key_sql('t.')}) FROM t") == 4
        )  # one has the iot_id twice
