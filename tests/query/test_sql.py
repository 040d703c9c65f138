"""SQL queries: any SELECT over a run's views, and nothing else."""

import csv
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from auditor.errors import UsageError
from auditor.query.sql import query_run
from auditor.text.formats import TableFormat
from tests.runs.run_folders import Built, build, every_status, named, ok, running


def query(folder: Path, sql: str) -> list[tuple[object, ...]]:
    with query_run(folder, sql) as answer:
        return list(answer.table)


def live(folder: Path) -> Built:
    built = every_status(folder.with_name("sealed"))
    return running(folder, built.fleet, built.outcomes)


@pytest.mark.parametrize("make", [every_status, live])
@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*) FROM fleet", [(10,)]),
        ("SELECT status, count(*) FROM devices GROUP BY ALL ORDER BY ALL",
         [("empty", 1), ("failed", 2), ("not_found", 1), ("ok", 4), ("pending", 2)]),
        ("SELECT module_version FROM modules WHERE module_name = 'ble' ORDER BY 1; -- said", [("1.0",), ("1.0",), ("1.1",), ("9",)]),
        ("WITH v AS (FROM inventory) SELECT sum(devices) FROM v", [(6,)]),
        ("SELECT sum(modules), avg(modules) FILTER (modules > 0) FROM devices", [(6, 1.5)]),
        ("VALUES ([1, 2], DATE '2026-11-22', 1.5, {'a': NULL})", [("[1, 2]", "2026-11-22", 1.5, "{'a': NULL}")]),
    ],
)  # fmt: skip
def test_a_select_reads_every_view(tmp_path: Path, make: Callable[[Path], Built], sql: str, rows: object) -> None:
    assert query(make(tmp_path / "run").folder, sql) == rows


BEYOND = [
    "FROM read_csv('{secret}')",
    "FROM '{secret}'",
    "FROM read_text('{secret}')",
    "FROM read_blob('{secret}')",
    "FROM glob('{folder}/*')",
    "FROM read_json('{folder}/run/run.json')",
    "FROM 'https://example.com/a.csv'",
    "FROM read_parquet('s3://bucket/a.parquet')",
    "FROM parquet_metadata('{secret}')",
    "FROM sniff_csv('{secret}')",
    "SELECT (SELECT content FROM read_text('{secret}'))",
]


@pytest.mark.parametrize("sql", BEYOND)
def test_other_files_and_the_network_are_refused(tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    folder = every_status(tmp_path / "run").folder
    with pytest.raises(UsageError, match="no file, network or setting"):
        query(folder, sql.format(secret=secret, folder=tmp_path))


@pytest.mark.parametrize(
    "sql",
    [
        "COPY devices TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{folder}/run/devices.parquet'",
        "ATTACH '{folder}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "SET threads = 8",
        "SET enable_external_access = true",
        "RESET memory_limit",
        "CALL pragma_version()",
        "CREATE TABLE t AS FROM devices",
        "DROP VIEW devices",
        "INSERT INTO devices VALUES (1)",
        "DELETE FROM devices",
        "EXPORT DATABASE '{folder}/out'",
        "SELECT 1; COPY devices TO '{folder}/out.csv'",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
    ],
)
def test_anything_but_one_select_is_refused_and_nothing_is_written(tmp_path: Path, sql: str) -> None:
    folder = every_status(tmp_path / "run").folder
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="must be one SELECT"):
        query(folder, sql.format(folder=tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("sql", ["SELCT 1", "FROM nowhere", "SELECT $1", "SELECT 'a'::INT", "SELECT 1) UNION (SELECT 2",
                                 "FROM answer", "SELECT getenv('HOME')", "SELECT 170141183460469231731687303715884105727"])  # fmt: skip
def test_an_invalid_query_fails_with_one_sentence(tmp_path: Path, sql: str) -> None:
    with pytest.raises(UsageError) as error:
        query(every_status(tmp_path / "run").folder, sql)
    assert "\n" not in str(error.value)


def test_a_python_variable_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder does not exist"):
        query(every_status(tmp_path / "run").folder, "FROM folder")


def test_results_are_written_in_every_format_with_safe_cells_and_headers(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    forms: list[TableFormat] = ["csv", "json", "jsonl", "parquet"]
    with query_run(folder, """SELECT '=1+1' AS "@sum", 7 AS n, NULL AS nothing""") as answer:
        for form in forms:
            answer.table.write(tmp_path / f"out.{form}", form)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["'@sum", "n", "nothing"], ["'=1+1", "7", ""]]
    row = {"@sum": "=1+1", "n": 7, "nothing": None}
    assert orjson.loads((tmp_path / "out.jsonl").read_bytes()) == row
    document = orjson.loads((tmp_path / "out.json").read_bytes())
    assert document["rows"] == [row]
    assert document["warnings"] == [{"kind": "partial", "message": f"{folder}: partial: 2 devices failed, 2 pending"}]
    assert query(folder, "SELECT 1") == [(1,)]


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "it's [a-z]*?" / "run").folder
    assert query(folder, "SELECT count(*) FROM modules JOIN fleet USING (product_key, device_name)") == [(6,)]


def test_a_query_larger_than_memory_spills(tmp_path: Path) -> None:
    fleet = [named(0)]
    folder = build(tmp_path / "run", fleet, [ok(fleet[0], ("ble", "1"))]).folder
    sql = "SELECT count(*) FROM (SELECT i, md5(i::VARCHAR) h FROM range(3000000) t(i) ORDER BY h OFFSET 1)"
    with query_run(folder, sql) as answer:
        assert list(answer.table) == [(2_999_999,)]
    assert not list(tmp_path.glob("**/spill*"))
