"""The dbt project on PostgreSQL and DuckDB: its tests pass, and its models have the numbers of an oracle."""

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from auditor.analysis.rollouts import read_rollouts
from auditor.concurrency import TimeLimit
from auditor.publish.postgresql import PostgresqlDestination, PostgresqlSettings
from auditor.publish.tables import TABLES, open_published
from auditor.query.run import Run
from auditor.storage.database import sql_literal
from tests.analysis.recorded_runs import add_run
from tests.publish.postgresql_server import ADMIN, Server, needs_postgresql

ROOT = Path(__file__).parents[2]
DBT = Path(os.environ.get("AUDITOR_DBT", ROOT / ".dbt" / "bin" / "dbt"))

pytestmark = [
    pytest.mark.slow,
    needs_postgresql,
    pytest.mark.skipif(
        not DBT.exists(), reason="NOT TESTED: the dbt project, because dbt is missing (make .dbt/.installed)"
    ),
]

VERSIONS = {0: "1.0 1.1 1.0 1.1 1.0", 1: "1.0 1.1 1.2 1.3 1.4", 2: "1.0 1.0 1.1 1.1 1.1", 3: "1.1 1.1 1.1 1.1 1.1"}
"""The versions of each device over five nights: one returns, one is updated often, one once, one never."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    audits = tmp_path_factory.mktemp("dbt") / "audits"
    for night in range(5):
        add_run(audits, 20 + night, [{"ble": versions.split()[night]} for versions in VERSIONS.values()])
    return audits


def run_dbt(tmp_path: Path, target: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    project = tmp_path / "dbt"
    if not (project / "dbt_project.yml").exists():
        ignored = shutil.ignore_patterns("target", "logs", "*.duckdb")
        shutil.copytree(ROOT / "deploy" / "dbt", project, ignore=ignored, dirs_exist_ok=True)
    variables = {
        **os.environ,
        **environment,
        "DBT_TARGET": target,
        "DBT_PROFILES_DIR": str(project),
        "DO_NOT_TRACK": "1",
    }
    return subprocess.run(
        [DBT, "--no-use-colors", *arguments],
        cwd=project,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def publish_to_duckdb(folders: list[Path], path: Path) -> None:
    for folder in folders:
        with open_published(folder) as run:
            run.database.execute(f"ATTACH {sql_literal(path)} AS target; CREATE SCHEMA IF NOT EXISTS target.auditor")
            for name in TABLES:
                run.database.execute(f"CREATE TABLE IF NOT EXISTS target.auditor.{name} AS {run.query(name)} LIMIT 0")
                run.database.execute(f"INSERT INTO target.auditor.{name} {run.query(name)}")
            run.database.execute("DETACH target")


DUCKDB_FILE = "dbt/auditor_dbt.duckdb"
"""The default of the documented command, in the folder of the project."""

DATASET = "auditor.publish.parquet_dataset"

needs_dataset = pytest.mark.skipif(
    find_spec(DATASET) is None, reason=f"NOT TESTED: dbt on a dataset, without {DATASET}"
)


@pytest.fixture(params=["postgresql", "duckdb", pytest.param("dataset", marks=needs_dataset)])
def built(request: pytest.FixtureRequest, directory: Path, server: Server, database: str, tmp_path: Path) -> Any:
    """Run dbt on a database that has the runs; return a function that queries it, and one that runs dbt."""
    folders, environment = sorted(directory.iterdir()), dict[str, str]()
    (tmp_path / DUCKDB_FILE).parent.mkdir()
    if request.param == "postgresql":
        environment |= {
            "PGHOST": str(server.folder),
            "PGPORT": str(server.port),
            "PGUSER": ADMIN,
            "PGDATABASE": database,
        }
        target = PostgresqlDestination(PostgresqlSettings(str(server.folder), database, ADMIN, port=server.port))
        for folder in folders:
            target.publish(folder, TimeLimit(60))
    elif request.param == "dataset":
        files = import_module(DATASET)
        lake = files.DatasetDestination(files.FilesSettings(str(tmp_path / "it's [a] dataset")))
        for folder in folders:
            lake.publish(folder, TimeLimit(60))
    else:
        publish_to_duckdb(folders, tmp_path / DUCKDB_FILE)

    def query(sql: str) -> list[tuple[Any, ...]]:
        if request.param == "postgresql":
            return server.query(sql, database=database)
        with duckdb.connect(str(tmp_path / DUCKDB_FILE)) as connection:
            return connection.execute(sql).fetchall()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        if request.param == "dataset":
            arguments = (*arguments, "--vars", json.dumps({"dataset": str(tmp_path / "it's [a] dataset")}))
        target = "postgresql" if request.param == "postgresql" else "duckdb"
        return run_dbt(tmp_path, target, *arguments, **environment)

    return query, run


def test_models_have_the_numbers_of_the_runs(built: Any, directory: Path) -> None:
    query, run = built
    finished = run("build")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "WARN=0 ERROR=0" in finished.stdout
    folders = sorted(directory.iterdir())

    adoption = {(name, version): (devices, share) for name, version, devices, share in
                query("SELECT run, module_version, devices, share FROM auditor_models.adoption")}  # fmt: skip
    expected: dict[tuple[str, str], tuple[int, float]] = {}
    for folder in folders:
        with Run(folder) as opened:
            expected |= {(folder.name, each.module_version): (each.devices, each.share) for each in opened.inventory()}
    assert adoption == expected
    changes = query(
        "SELECT share - share_change FROM auditor_models.adoption "
        f"WHERE run = '{folders[-1].name}' AND module_version = '1.1'"
    )
    assert changes == [(expected[folders[-2].name, "1.1"][1],)]

    behind = query("SELECT module_name, target, behind, share_behind FROM auditor_models.behind")
    rollouts = [each for each in read_rollouts(folders[-1]).rollouts if each.behind]
    assert behind == [(each.module_name, each.target, each.behind, each.behind / each.devices) for each in rollouts]
    assert len(behind) == 1

    flapping = query("SELECT device_name, changes, returns, versions FROM auditor_models.flapping")
    assert sorted((name, int(changes), int(returns), versions) for name, changes, returns, versions in flapping) == [
        ("device0000", 4, 3, 2), ("device0001", 4, 0, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("built", ["postgresql"], indirect=True)
def test_old_runs_whose_rows_were_deleted_are_no_failure_and_partial_runs_in_no_model(built: Any) -> None:
    """As docs/publishing-postgresql.md deletes them."""
    query, run = built
    names = [name for (name,) in query("SELECT run FROM auditor.runs ORDER BY run")]
    query(f"UPDATE auditor.runs SET state = 'partial' WHERE run = '{names[-1]}'")
    query(f"UPDATE auditor.runs SET night = current_date - 91 WHERE run = '{names[0]}'")
    query(f"UPDATE auditor.runs SET night = current_date - 89 WHERE run = '{names[1]}'")
    for table in ("modules", "devices", "changes"):
        query(f"DELETE FROM auditor.{table} WHERE run = '{names[0]}'")
    built_models = run("build", "--exclude", "flapping")
    assert built_models.returncode == 0, built_models.stdout
    assert query("SELECT max(run) FROM auditor_models.adoption") == [(names[-2],)]
    assert query("SELECT DISTINCT run FROM auditor_models.behind") == [(names[-2],)]
    for table in ("modules", "devices", "changes"):
        query(f"DELETE FROM auditor.{table} WHERE run = '{names[1]}'")
    failed = run("test", "--select", "complete_runs")
    assert "Got 1 result" in failed.stdout


@pytest.mark.parametrize("built", ["postgresql"], indirect=True)
def test_a_part_of_a_run_and_old_runs_are_found(built: Any) -> None:
    """Such as by another program that deletes rows, or when no audit ran for days."""
    query, run = built
    stale = run("source", "freshness")
    assert stale.returncode != 0
    assert "ERROR STALE" in stale.stdout
    now = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
    newest = "(SELECT max(run) FROM auditor.runs)"
    query(f"UPDATE auditor.runs SET finished_at = '{now}' WHERE run = {newest}")
    fresh = run("source", "freshness")
    assert fresh.returncode == 0, fresh.stdout
    query(f"DELETE FROM auditor.modules WHERE run = {newest} AND ordinal = 0")
    failed = run("test", "--select", "complete_runs")
    assert failed.returncode != 0
    assert "Got 1 result" in failed.stdout
