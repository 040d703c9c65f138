"""SQL queries: any SELECT over a run's views, and nothing else."""

import csv
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

import auditor
from auditor.errors import RunFolderError, UsageError
from auditor.query.sql import query_run, query_runs
from auditor.runs.folder import FIRMWARE, MODULES, TASKS
from auditor.runs.views import FIRMWARE_COLUMNS, TASK_COLUMNS, no_rows
from auditor.text.formats import TableFormat
from tests.database import connect
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


@pytest.mark.slow
def test_a_query_larger_than_memory_spills(tmp_path: Path) -> None:
    fleet = [named(0)]
    folder = build(tmp_path / "run", fleet, [ok(fleet[0], ("ble", "1"))]).folder
    sql = "SELECT count(*) FROM (SELECT i, md5(i::VARCHAR) h FROM range(3000000) t(i) ORDER BY h OFFSET 1)"
    with query_run(folder, sql) as answer:
        assert list(answer.table) == [(2_999_999,)]
    assert not list(tmp_path.glob("**/spill*"))


def write_releases(folder: Path) -> None:
    """The tables of a run that read released firmware, which has none."""
    with connect() as database:
        for name, columns in ((FIRMWARE, FIRMWARE_COLUMNS), (TASKS, TASK_COLUMNS)):
            database.execute(f"COPY ({no_rows(columns)}) TO '{folder / name}' (FORMAT parquet)")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cannot be read: Invalid Input Error: Footer": lambda path: path.write_bytes(b"PAR1 and more PAR1"),
    "cannot be read: .*No magic bytes": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "does not have the columns of a run": lambda path: path.write_bytes((path.parent / MODULES).read_bytes()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "views", "others"),
    [
        (FIRMWARE, ("firmware", "jobs", "device_releases"), ("tasks",)),
        (TASKS, ("tasks", "device_releases"), ("firmware", "jobs")),
    ],
)
def test_only_the_views_of_a_damaged_file_of_releases_fail(
    tmp_path: Path, name: str, views: tuple[str, ...], others: tuple[str, ...], damage: str
) -> None:
    run = tmp_path / "20261122T020000Z-nightly"
    build(run, [named(1)], [ok(named(1), ("ble", "1"))])
    write_releases(run)
    DAMAGES[damage](run / name)
    for view in ("fleet", "devices", "modules", "inventory", *others):
        assert query(run, f"SELECT count(*) FROM {view}") == [(0 if view in others else 1,)]
    for view in views:
        # The released versions of device_releases are read before the query.
        error = RunFolderError if view == "device_releases" else UsageError
        with pytest.raises(error, match=f": Invalid Input Error: {name}: {damage}"):
            query(run, f"SELECT count(*) FROM {view}")
    with auditor.Run(run) as opened:
        assert len(list(opened.table("modules"))) == 1
        assert list(opened.table("tasks" if name == FIRMWARE else "firmware")) == []
        with pytest.raises(RunFolderError, match=f"{name}: {damage}"):
            list(opened.table("device_releases"))
    with query_runs(tmp_path, "SELECT count(*) FROM devices") as found:
        assert list(found.table) == [(1,)]
    with pytest.raises(UsageError, match=f"{name}: {damage}"), query_runs(tmp_path, f"FROM {views[0]}") as found:
        list(found.table)


def test_a_file_of_releases_that_would_take_hours_fails_its_own_views_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tmp_path / "run", [named(1)], [ok(named(1), ("ble", "1"))]).folder
    write_releases(run)
    with connect() as database:
        nothing = no_rows(TASK_COLUMNS).removesuffix(" WHERE false")
        database.execute(f"COPY ({nothing} FROM range(900000)) TO '{run / TASKS}' (FORMAT parquet)")
    monkeypatch.setattr("auditor.storage.database.MIN_REPEATED_ROWS", 1_000)
    assert query(run, "SELECT count(*) FROM modules") == [(1,)]
    with pytest.raises(UsageError, match=r"tasks\.parquet: has 900,000 rows in"):
        query(run, "FROM tasks")
