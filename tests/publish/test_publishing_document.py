"""The snippets of docs/publishing.md, run on a dataset, and its columns compared with the contract."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from auditor.concurrency import TimeLimit
from auditor.config.loader import parse_settings
from auditor.config.toml_tables import read_toml
from auditor.publish.destinations import open_destination
from auditor.publish.parquet_dataset import publish_to_store
from auditor.publish.tables import TABLES, open_published
from auditor.storage.object_store import open_store
from tests.publish.test_publisher import ACCOUNT
from tests.runs.run_folders import build, named, ok

DOCUMENT = Path(__file__).parents[2] / "docs" / "publishing.md"


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


def test_the_ddl_has_the_columns_of_the_contract() -> None:
    columns = re.search(r"TABLE modules \((.*?)\) PARTITIONED BY \((.*?)\)", snippet("athena"), re.DOTALL)
    assert columns is not None
    names = {part.split()[0] for part in f"{columns[1]}, {columns[2]}".split(",")}
    assert names == {column.name for column in TABLES["modules"].columns}


def test_the_settings_are_accepted(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    (tmp_path / "settings.toml").write_text(re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0])
    settings = parse_settings({"account": [ACCOUNT], **read_toml(tmp_path / "settings.toml")})
    assert [open_destination(each).describe() for each in settings.publish] == ["/srv/lake", "s3://lake/auditor"]
