"""The snippets of docs/publishing.md: run on a dataset where their program is here, else parsed in their dialect."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlglot
from msgspec import structs
from sqlglot import expressions
from sqlglot.optimizer.qualify import qualify

from auditor.concurrency import TimeLimit
from auditor.config.loader import parse_settings
from auditor.config.toml_tables import read_toml
from auditor.publish.dataset import PARTITIONS, DatasetFile
from auditor.publish.destinations import open_destination
from auditor.publish.parquet_dataset import publish_to_store
from auditor.publish.postgresql import PostgresqlDestination, PostgresqlSettings
from auditor.publish.tables import SQL_TYPES, TABLES, open_published
from auditor.storage.object_store import open_store
from tests.publish.postgresql_server import needs_postgresql, run_server
from tests.publish.test_publisher import ACCOUNT
from tests.runs.run_folders import build, named, ok

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "publishing.md"


def snippet(language: str) -> str:
    (found,) = re.findall(rf"```\w+ {language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fleet = [named(n, account=account) for account in ("eu/1", "0017") for n in range(3)]
    build(tmp_path / "20261122T020000Z-nightly", fleet, [ok(d, ("ble", "1.0")) for d in fleet])
    with open_published(tmp_path / "20261122T020000Z-nightly") as run:
        publish_to_store(run, open_store(str(tmp_path / "lake")), TimeLimit())
    for table in ("devices", "modules"):  # a file that no run names, as a killed process leaves one
        path = next((tmp_path / "lake" / table).rglob("*.parquet"))
        (path.parent / "20261122T020000Z-nightly-000000000000.parquet").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lake"


def test_duckdb(lake: Path) -> None:
    with duckdb.connect() as connection:
        rows = connection.execute(snippet("duckdb")).fetchall()
        accounts = connection.execute("SELECT DISTINCT account FROM devices ORDER BY 1").fetchall()
    assert [(status, devices) for _, status, devices in rows] == [("ok", 6)]
    assert accounts == [("0017",), ("eu/1",)]


@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_python(lake: Path, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"NOT TESTED: the snippet of {library}, which is not installed")
    names: dict[str, Any] = {}
    exec(snippet(library), names)
    rows = names["versions"].to_pylist() if library == "pyarrow" else names["versions"].to_dicts()
    assert [sorted(map(str, row.values())) for row in rows] == [sorted(("2026-11-22", "ble", "1.0", "6"))]
    modules = names["modules"] if library == "pyarrow" else names["modules"].collect()
    assert set(modules["account"].to_pylist() if library == "pyarrow" else modules["account"]) == {"0017", "eu/1"}


def parse(dialect: str) -> list[expressions.Expr]:
    """Return the statements of a snippet whose program is not here; what sqlglot does not know is a ``Command``."""
    parsed = sqlglot.parse(snippet(dialect), dialect=dialect)
    return [each for each in parsed if each is not None and not isinstance(each, expressions.Semicolon)]


def columns(schema: expressions.Expr) -> dict[str, str]:
    """Return the columns of a CREATE TABLE, or the members of a type, with their types in DuckDB."""
    return {each.name: each.args["kind"].sql("duckdb") for each in schema.expressions}


def test_athena_has_the_tables_of_the_contract_and_reads_files_that_are_named() -> None:
    modules, repair, runs, query = parse("athena")
    assert isinstance(modules, expressions.Create)
    types = {column.name: SQL_TYPES[column.type].replace("VARCHAR", "TEXT") for column in TABLES["modules"].columns}
    partitions = modules.find(expressions.PartitionedByProperty)
    assert partitions is not None
    assert columns(modules.this) | columns(partitions.this) == types
    assert tuple(columns(partitions.this)) == PARTITIONS
    assert isinstance(repair, expressions.Command)
    assert repair.sql("athena") == "MSCK REPAIR TABLE modules"
    assert isinstance(runs, expressions.Create)
    (file,) = (each.args["kind"].expressions[0] for each in runs.this.expressions if each.name == "files")
    assert columns(file) == {"key": "TEXT", "table": "TEXT", "rows": "BIGINT", "bytes": "BIGINT", "sha256": "TEXT"}
    assert tuple(columns(file)) == DatasetFile.__struct_fields__
    schema: dict[str, object] = {"modules": types | {"$path": "TEXT"}, "runs": columns(runs.this)}
    qualify(query, schema=schema, dialect="athena")  # an unknown column is an error
    # Trino gives each member of an array of rows a column, and refuses another number of names for them.
    (unnested,) = query.find_all(expressions.Unnest)
    assert len(unnested.args["alias"].columns) == len(columns(file))


def test_clickhouse_parses_and_reads_files_that_are_named() -> None:
    (query,) = parse("clickhouse")
    assert isinstance(query, expressions.Select)
    read = [[each.name for each in table.expressions] for table in query.find_all(expressions.Anonymous)]
    addresses = {address for address, *_ in filter(None, read) if address.startswith("https://")}
    assert addresses == {
        f"https://lake.s3.amazonaws.com/auditor/{each}" for each in ("runs/*.json", "modules/**/*.parquet")
    }
    assert {column.name for column in query.find_all(expressions.Column)} <= {
        *(column.name for column in TABLES["modules"].columns), "_path", "path", "files", "use_hive_partitioning",
    }  # fmt: skip


@pytest.mark.slow
@needs_postgresql
def test_postgresql_as_its_page_sets_it_up_reads_and_prunes_it(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "publishing-postgresql.md").read_text(encoding="utf-8")
    roles, reading, pruning = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    fleet = [structs.replace(named(n, product="p1"), iot_id=None) for n in range(3)]
    details = [{"attributes": {"site": "paris"}}] * 3
    run = build(tmp_path / "20261122T020000Z-nightly", fleet, [ok(d, ("mcu", "1.0")) for d in fleet], details=details)
    with run_server() as server:
        create, rest = roles.split("\n", 1)
        server.query(create)
        server.query((ROOT / "deploy" / "postgresql" / "schema.sql").read_text(encoding="utf-8"), database="iot")
        server.query("REVOKE ALL ON DATABASE iot FROM PUBLIC; GRANT CONNECT ON DATABASE iot TO PUBLIC")
        server.query(rest, database="iot")
        server.query("ALTER ROLE auditor_reader LOGIN")
        settings = PostgresqlSettings(str(server.folder), "iot", "auditor_publisher", port=server.port)
        for _ in range(2):
            PostgresqlDestination(settings).publish(run.folder, TimeLimit(60))
        behind, shares = reading.split(";\n\n")
        with server.connect("auditor_reader", "iot") as connection:
            assert connection.execute(behind).fetchall() == []
            assert [row[1:] for row in connection.execute(shares)] == [("1.0", 3, 1.0)]
        server.query("UPDATE auditor.runs SET night = '2020-01-01'", database="iot")
        server.query(pruning, database="iot")
        counts = [server.query(f"SELECT count(*) FROM auditor.{name}", database="iot") for name in TABLES]
    assert dict(zip(TABLES, [count for ((count,),) in counts], strict=True)) == {
        "runs": 1, "devices": 0, "modules": 0, "inventory": 1, "rollouts": 1, "changes": 0,
    }  # fmt: skip


def test_the_settings_are_accepted(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    (tmp_path / "settings.toml").write_text(re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0])
    settings = parse_settings({"account": [ACCOUNT], **read_toml(tmp_path / "settings.toml")})
    assert [open_destination(each).describe() for each in settings.publish] == ["/srv/lake", "s3://lake/auditor"]
