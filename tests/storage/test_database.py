"""DuckDB: how it is opened, scratch databases, literals and keys."""

import re
import subprocess
import sys
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import duckdb
import pytest

from auditor.errors import RunFolderError
from auditor.storage.database import (
    MAX_TEXT_PER_BYTE,
    READING_MEMORY,
    borrow_database,
    describe_repeated_rows,
    device_key_sql,
    is_interruption,
    open_database,
    parquet,
    scalar,
    scratch_database,
    sql_literal,
    with_enough_memory,
    write_parquet,
)
from tests.database import LONG_QUERY, interrupting, run_interrupted_query


def test_no_progress_bar_is_printed_on_standard_output() -> None:
    # With `-c` as in a notebook DuckDB takes a program for a person, and draws what takes more than two seconds.
    program = (
        "from auditor.storage.database import open_database; database = open_database(); "
        "print(database.execute(\"SELECT current_setting('enable_progress_bar')\").fetchone())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "(False,)\n"


def test_a_signal_during_a_query_is_recognized_and_the_interruption_of_another_thread_is_not() -> None:
    with open_database() as database:
        with pytest.raises(RuntimeError) as caught:
            run_interrupted_query(database)
        assert is_interruption(caught.value)
        with interrupting(database), pytest.raises(duckdb.InterruptException) as interrupted:
            database.execute(LONG_QUERY)
    assert not any(map(is_interruption, (interrupted.value, RuntimeError("other"), ValueError("Query interrupted"))))


SETTINGS = ("threads", "memory_limit", "temp_directory", "preserve_insertion_order", "disabled_optimizers")


def settings_of(database: duckdb.DuckDBPyConnection) -> object:
    return database.execute(
        f"SELECT {', '.join(f'current_setting({sql_literal(name)})' for name in SETTINGS)}"
    ).fetchone()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The databases that were opened, and no idle one."""
    opened: list[object] = []
    real = duckdb.connect

    def connect(**options: object) -> object:
        opened.append(options)
        return real(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(duckdb, "connect", connect)
    monkeypatch.setattr("auditor.storage.database._IDLE", [])
    return opened


def test_a_borrowed_database_is_used_again_and_is_as_a_new_one(tmp_path: Path, opened: list[object]) -> None:
    with borrow_database(tmp_path / "spill", "200MB", 2) as database:
        assert scalar(database, "SELECT current_setting('threads')") == 2
        database.execute(
            "CREATE TEMP TYPE form AS ENUM ('a'); CREATE TABLE t(a INT, b INT PRIMARY KEY); CREATE VIEW v AS FROM t"
        )
        database.execute("CREATE TEMP TABLE u AS SELECT 'a'::form FROM t; SET disabled_optimizers = 'filter_pushdown'")
        database.cursor().execute('CREATE TABLE "odd "" name" AS FROM range(9)')
    with borrow_database() as database, open_database() as new:
        for query in (
            "FROM duckdb_tables()",
            "FROM duckdb_views() WHERE NOT internal",
            "FROM duckdb_types() WHERE NOT internal",
        ):
            assert database.execute(query).fetchall() == []
        assert settings_of(database) == settings_of(new)
    assert len(opened) == 2  # one of them by open_database


def test_databases_that_are_borrowed_concurrently_are_apart(opened: list[object]) -> None:
    for _ in range(2):
        with borrow_database() as one, borrow_database() as other, borrow_database() as third:
            for number, database in enumerate((one, other, third)):
                database.execute(f"CREATE TABLE t AS SELECT {number} AS a")
            assert [scalar(database, "FROM t") for database in (one, other, third)] == [0, 1, 2]
    assert len(opened) == 4  # two are kept


@pytest.mark.parametrize("end", ["locked", "spilled", "failed"])
def test_a_database_that_may_not_be_as_a_new_one_is_not_used_again(
    tmp_path: Path, opened: list[object], end: str
) -> None:
    with suppress(duckdb.CatalogException), borrow_database(tmp_path, "32MB") as database:
        database.execute("CREATE TABLE t AS SELECT 1")
        if end == "locked":
            database.execute("SET enable_external_access = false; SET lock_configuration = true")
        elif end == "spilled":
            rows = "SELECT hash(i) || repeat('x', 80) AS s FROM range(400_000) t(i) ORDER BY s LIMIT 399_999"
            assert scalar(database, f"SELECT count(*) FROM ({rows})") == 399_999
        else:
            database.execute("FROM missing")
    with borrow_database(tmp_path) as database:
        assert database.execute("FROM duckdb_tables()").fetchall() == []
        assert scalar(database, f"FROM read_csv({sql_literal(fleet_file(tmp_path))})") == 7
    assert len(opened) == 2


def test_a_forked_process_reads_files_with_the_idle_database(tmp_path: Path, opened: list[object]) -> None:
    with borrow_database(threads=4) as database:
        write_parquet(database, "FROM range(300_000)", tmp_path / "rows.parquet")
        assert len([*Path("/proc/self/task").iterdir()]) > 1
    child = get_context("fork").Process(target=count_rows, args=(tmp_path,))
    child.start()
    child.join(60)
    child.kill()
    assert (tmp_path / "counted").read_text() == "300000"


def count_rows(folder: Path) -> None:
    assert len([*Path("/proc/self/task").iterdir()]) == 1
    with borrow_database(threads=4) as database:
        count = scalar(database, f"SELECT count(*) FROM (FROM {parquet(folder / 'rows.parquet')} ORDER BY hash(range))")
        (folder / "counted").write_text(str(count))


def fleet_file(folder: Path) -> Path:
    path = folder / "fleet.csv"
    path.write_text("a\n7\n")
    return path


def test_an_idle_database_is_closed_at_the_end_of_a_program() -> None:
    program = "from auditor.storage.database import borrow_database\nwith borrow_database(): print('used')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("used\n", "")


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


SHARED = "FORMAT parquet, ROW_GROUP_SIZE 100_000, DICTIONARY_SIZE_LIMIT 100_000, COMPRESSION zstd"
"""Options under which equal values are one value of a dictionary."""

TEXTS = {
    "text": "{}",
    "bytes": "{}::BLOB",
    "map": "MAP {{'note': {}}}",
    "names of a map": "MAP {{{}: 'x'}}",
    "list of structs": "[{{'module_name': 'ble', 'module_version': {}}}]",
    "struct": "{{'a': 1, 'b': {}}}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_small_file_whose_rows_share_a_long_text_is_not_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.storage.database.MIN_TEXT_BYTES", 50_000_000)
    with open_database(memory=READING_MEMORY) as database:
        for name, length in (("long", 2_000), ("short", 400)):
            value = TEXTS[kind].format(f"repeat('a', {length})")
            database.execute(f"COPY (SELECT {value} AS a FROM range(30_000)) TO '{tmp_path / name}' ({SHARED})")
        assert (tmp_path / "long").stat().st_size < 3_000
        reason = describe_repeated_rows(database, tmp_path / "long")
        assert reason is not None
        assert re.fullmatch(
            r"has more than 50,000,000 bytes of text in [\d,]+ bytes; no audit writes such a file", reason
        )
        assert describe_repeated_rows(database, tmp_path / "short") is None


def test_sizes_in_the_metadata_of_a_file_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.storage.database.MIN_TEXT_BYTES", 50_000_000)
    path = tmp_path / "forged"
    size = "SELECT max(total_uncompressed_size) FROM parquet_metadata(?)"
    with open_database(memory=READING_MEMORY) as database:
        database.execute(f"COPY (SELECT repeat('a', 9_000) AS a FROM range(30_000)) TO '{path}' ({SHARED})")
        written, content = scalar(database, size, [str(path)]), path.read_bytes()
        encoded = bytes([written << 1 & 0x7F | 0x80, written >> 6 & 0x7F | 0x80, written >> 13])
        assert encoded in content
        path.write_bytes(content.replace(encoded, b"\x82\x80\x00"))
        assert scalar(database, size, [str(path)]) == 1
        assert "bytes of text" in str(describe_repeated_rows(database, path))


def test_many_different_texts_of_which_one_is_long_are_read(tmp_path: Path) -> None:
    # The bound by the longest value says 20 GB, and the values have 5 MB.
    with open_database(memory=READING_MEMORY) as database:
        text = "CASE i WHEN 7 THEN repeat('a', 100_000) ELSE 'version-' || i % 20_000 END"
        database.execute(f"COPY (SELECT {text} AS a FROM range(200_000) t(i)) TO '{tmp_path / 'honest'}' ({SHARED})")
        assert describe_repeated_rows(database, tmp_path / "honest") is None


def test_a_text_that_does_not_fit_into_memory_is_not_read(tmp_path: Path) -> None:
    with open_database(memory=READING_MEMORY) as database:
        rows = "SELECT MAP {'note': repeat('a', 4_000_000)} AS a FROM range(300)"
        database.execute(f"COPY ({rows}) TO '{tmp_path / 'long'}' ({SHARED})")
        assert "bytes of text" in str(describe_repeated_rows(database, tmp_path / "long"))


def test_long_equal_versions_are_well_inside_the_bound(tmp_path: Path) -> None:
    with open_database(memory=READING_MEMORY) as database:
        row = "'eu' AS account, 'p1' AS product_key, 'device' || i // 4 AS device_name, repeat('1', 200) AS version"
        path = tmp_path / "honest"
        rows = f"SELECT {row} FROM range(500_000) t(i)"
        database.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 20_480, COMPRESSION zstd)")
        assert describe_repeated_rows(database, path) is None
        text = scalar(
            database, f"SELECT sum(strlen(concat(account, product_key, device_name, version))) FROM {parquet(path)}"
        )
    assert text < path.stat().st_size * MAX_TEXT_PER_BYTE / 2


def test_a_file_that_was_accepted_is_examined_again_when_another_one_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with open_database(memory=READING_MEMORY) as database:
        for rows, is_refused in (("range(2_000_000)", False), ("(SELECT 7 FROM range(20_000_000))", True)):
            for _ in range(2):
                database.execute(f"COPY (FROM {rows}) TO '{path}' (FORMAT parquet)")
                assert (describe_repeated_rows(database, path) is not None) == is_refused
                assert (describe_repeated_rows(database, path) is not None) == is_refused


def test_a_file_is_examined_once(tmp_path: Path) -> None:
    with open_database(memory=READING_MEMORY) as database:
        database.execute(f"COPY (FROM range(10)) TO '{tmp_path / 'rows'}' (FORMAT parquet)")
        assert describe_repeated_rows(database, tmp_path / "rows") is None
    assert describe_repeated_rows(database, tmp_path / "rows") is None, "the closed database was used"
