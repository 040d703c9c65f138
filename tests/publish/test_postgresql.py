"""Runs in a real PostgreSQL server: the same numbers and texts, once each, whatever ends in between."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
import trustme
from msgspec import structs

from auditor.concurrency import TimeLimit
from auditor.config.settings import SecretSource
from auditor.errors import DestinationError, RunFolderError, SettingsError
from auditor.publish import postgresql, postgresql_schema
from auditor.publish.postgresql import PostgresqlDestination, PostgresqlSettings
from auditor.publish.tables import TABLES, TABLES_VERSION, open_published, run_digest
from auditor.query.run import Run
from auditor.runs.folder import MODULES
from auditor.runs.manifest import read_manifest
from tests.analysis.recorded_runs import write_days
from tests.publish.postgresql_server import ADMIN, Server, needs_postgresql, run_server
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, listed, named, ok

pytestmark = [pytest.mark.slow, needs_postgresql]


def destination(server: Server, database: str, **settings: Any) -> PostgresqlDestination:
    parameters: dict[str, Any] = {
        "host": str(server.folder),
        "port": server.port,
        "database": database,
        "user": ADMIN,
    } | settings
    return PostgresqlDestination(PostgresqlSettings(**parameters))


def publish(server: Server, database: str, folder: Path, *, seconds: float = 60, **settings: Any) -> None:
    destination(server, database, **settings).publish(folder, TimeLimit(seconds))


def succeed(folder: Path) -> None:
    """Let a run be one of those that the views of newest runs have."""
    edit_manifest(folder, lambda manifest: replace(manifest, state="within_tolerance"))


def stored(value: object) -> object:
    """What PostgreSQL should have of a value of DuckDB."""
    match value:
        case str():
            return value.replace("\0", "␀")
        case datetime():
            return value.replace(tzinfo=UTC)
        case dict():
            return {stored(key): stored(text) for key, text in value.items()}
    return value


def expected_rows(folder: Path, table: str) -> list[tuple[object, ...]]:
    with open_published(folder) as run:
        rows = run.database.execute(run.query(table)).fetchall()  # type: ignore[arg-type]
    return [tuple(map(stored, row)) for row in rows]


@pytest.mark.parametrize("make", [every_status, listed])
def test_all_tables_have_the_rows_of_the_run_and_its_inventory(
    make: Any, server: Server, database: str, tmp_path: Path
) -> None:
    make(tmp_path / "run")
    succeed(tmp_path / "run")
    publish(server, database, tmp_path / "run")
    for table in TABLES:
        found = server.query(f"SELECT * FROM auditor.{table} ORDER BY run, 4", database=database)
        assert found == expected_rows(tmp_path / "run", table)
    with Run(tmp_path / "run") as run:
        inventory = [(each.account, each.product_key, each.module_name, each.module_version, each.devices, each.share)
                     for each in run.inventory()]  # fmt: skip
    columns = "account, product_key, module_name, module_version, devices, share"
    found = server.query(f"SELECT {columns} FROM auditor.current_inventory ORDER BY ordinal", database=database)
    assert found == inventory
    counted = """SELECT m.account, m.product_key, max(m.module_name) OVER (PARTITION BY m.account, m.product_key,
      lower(m.module_name)), m.module_version, sum(count(*)) OVER (PARTITION BY m.account, m.product_key,
      lower(m.module_name), m.module_version) FROM auditor.current_modules m GROUP BY 1, 2, m.module_name, 4"""
    assert set(server.query(counted, database=database)) == {row[:5] for row in inventory}


def test_hostile_names_versions_and_attributes_arrive_unchanged(server: Server, database: str, tmp_path: Path) -> None:
    texts = [
        *HOSTILE,
        "\\.",
        "\n\\.\n",
        '"\n\\.\n"',
        "\\N",
        "NULL",
        "nul\0\0twice",
        "\\u0000",
        "a\\\0b",
        "x" * 10_000,
        "\ufffe",
    ]
    fleet = [structs.replace(named(0), device_name=f"d{text}") for text in texts]
    details = [{"attributes": {f"k{text}": text or "empty", "": "-"}} for text in texts]
    details[0] = {"attributes": {"nul\0": "one", "nul␀": "two"}}  # one name in PostgreSQL: the last one counts
    outcomes = [ok(device, (f"m{text}", text)) for device, text in zip(fleet, texts, strict=True)]
    folder = tmp_path / 'it\'s [a] "run"=1 '
    build(folder, fleet, outcomes, details=details)
    publish(server, database, folder, schema='od"d schema')
    for table in ("devices", "modules", "inventory"):
        found = server.query(f'SELECT * FROM "od""d schema".{table} ORDER BY ordinal', database=database)
        assert found == expected_rows(folder, table)
    assert server.query(
        'SELECT attributes ->> \'nul␀\' FROM "od""d schema".devices WHERE ordinal = 0', database=database
    ) == [("two",)]


def test_a_run_published_again_replaces_itself(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    every_status(tmp_path / "other")
    for folder in ("run", "other", "run"):
        publish(server, database, tmp_path / folder)
    rows = {name: server.query(f"SELECT * FROM auditor.{name} WHERE run = 'run'", database=database) for name in TABLES}
    fleet = [named(0), named(0, account="other", product="p2")]
    build(tmp_path / "new" / "run", fleet, [ok(device, ("ble", "9")) for device in fleet])
    publish(server, database, tmp_path / "new" / "run")
    digests = {name: run_digest(read_manifest(tmp_path / name)) for name in ("new/run", "other")}
    target = destination(server, database)
    assert target.published_runs(["run", "other", "missing"], TimeLimit(60)) == {
        "run": digests["new/run"],
        "other": digests["other"],
    }
    assert server.query("SELECT module_version FROM auditor.modules WHERE run = 'run'", database=database) == [
        ("9",),
        ("9",),
    ]
    publish(server, database, tmp_path / "run")
    for name in TABLES:
        again = server.query(f"SELECT * FROM auditor.{name} WHERE run = 'run'", database=database)
        assert sorted(again, key=str) == sorted(rows[name], key=str)


def test_only_rows_that_differ_are_written_when_a_run_is_published_again(
    server: Server, database: str, tmp_path: Path
) -> None:
    fleet = [named(n) for n in range(6)]
    details = [{"attributes": {"site": "paris"}} for _ in fleet]
    build(tmp_path / "run", fleet, [ok(d, ("ble", "1"), ("mcu", "2")) for d in fleet[:4]], details=details)
    edit_manifest(tmp_path / "run", lambda manifest: replace(manifest, state="partial"))
    publish(server, database, tmp_path / "run")
    stored = "SELECT ordinal, xmin::text FROM auditor.{} ORDER BY ordinal"
    before = {name: dict(server.query(stored.format(name), database=database)) for name in ("devices", "modules")}
    for statement in (
        "UPDATE auditor.modules SET module_version = '3' WHERE ordinal = 3",
        "DELETE FROM auditor.modules WHERE ordinal = 1",
        "UPDATE auditor.modules SET ordinal = 99 WHERE ordinal = 6",
    ):
        server.query(statement, database=database)
    build(tmp_path / "resumed" / "run", fleet, [ok(d, ("ble", "1"), ("mcu", "2")) for d in fleet], details=details)
    publish(server, database, tmp_path / "resumed" / "run")
    for table in TABLES:
        found = server.query(f"SELECT * FROM auditor.{table} ORDER BY run, 4", database=database)
        assert found == expected_rows(tmp_path / "resumed" / "run", table)
    after = {name: dict(server.query(stored.format(name), database=database)) for name in before}
    unchanged = {name: {n for n in before[name] if after[name][n] == before[name][n]} for name in before}
    assert unchanged == {"devices": {0, 1, 2, 3}, "modules": {0, 2, 4, 5, 7}}


def test_a_run_is_published_again_to_tables_that_an_operator_changed(
    server: Server, database: str, tmp_path: Path
) -> None:
    every_status(tmp_path / "run")
    for added in ("loaded_at timestamptz NOT NULL DEFAULT now()", "id bigint GENERATED ALWAYS AS IDENTITY"):
        for statement in postgresql_schema.create_statements("auditor"):
            server.query(statement, database=database)
        server.query(f"ALTER TABLE auditor.devices ADD COLUMN {added}", database=database)
    server.query("DROP VIEW auditor.current_devices", database=database)
    server.query("ALTER TABLE auditor.devices ALTER COLUMN attributes TYPE json", database=database)
    columns = ", ".join(column.name for column in TABLES["devices"].columns)
    stored = f"SELECT {columns}, loaded_at, id, xmin::text FROM auditor.devices ORDER BY ordinal"
    publish(server, database, tmp_path / "run")
    before = server.query(stored, database=database)
    server.query("DELETE FROM auditor.devices WHERE ordinal = 1", database=database)
    publish(server, database, tmp_path / "run")
    after = server.query(stored, database=database)
    assert [row[:-3] for row in after] == expected_rows(tmp_path / "run", "devices")
    assert [row for row in after if row in before] == [before[0], *before[2:]]


def test_another_run_of_the_same_name_is_not_replaced(server: Server, database: str, tmp_path: Path) -> None:
    """Such as that of another machine with the same settings and the same timetable."""
    every_status(tmp_path / "run")
    publish(server, database, tmp_path / "run")
    fleet = [named(0), named(1, account="third")]
    build(tmp_path / "accounts" / "run", fleet, [ok(device, ("ble", "9")) for device in fleet])
    every_status(tmp_path / "start" / "run")
    edit_manifest(tmp_path / "start" / "run", lambda manifest: replace(manifest, started_at="2026-11-22T02:00:09Z"))
    for other in ("accounts", "start"):
        with pytest.raises(DestinationError, match=r"has another run of the name run, .*a name of its own") as caught:
            publish(server, database, tmp_path / other / "run")
        assert not caught.value.retryable
    assert server.query("SELECT digest FROM auditor.runs", database=database) == [
        (run_digest(read_manifest(tmp_path / "run")),)
    ]


def test_a_resumed_run_may_have_an_account_that_was_not_listed_before(
    server: Server, database: str, tmp_path: Path
) -> None:
    fleet = [named(0), named(1, account="other")]
    build(tmp_path / "run", fleet[:1], [ok(fleet[0], ("ble", "1"))])
    edit_manifest(tmp_path / "run", lambda manifest: replace(manifest, state="partial"))
    publish(server, database, tmp_path / "run")
    build(tmp_path / "resumed" / "run", fleet, [ok(device, ("ble", "1")) for device in fleet])
    publish(server, database, tmp_path / "resumed" / "run")
    assert server.query("SELECT count(*) FROM auditor.devices", database=database) == [(2,)]


def test_a_missing_table_is_not_retried(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    publish(server, database, tmp_path / "run")
    server.query("DROP TABLE auditor.rollouts CASCADE", database=database)
    with pytest.raises(DestinationError, match=r"does not exist; the schema is not as auditor makes it") as caught:
        publish(server, database, tmp_path / "run")
    assert not caught.value.retryable


def test_a_server_without_tls_is_not_retried(tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    with run_server(tcp_rules="host all all 127.0.0.1/32 trust\n") as running:
        with pytest.raises(DestinationError, match="does not support SSL") as caught:
            publish(running, "postgres", tmp_path / "run", host="127.0.0.1")
        assert not caught.value.retryable


def test_a_name_with_nul_in_a_manifest_is_replaced(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: replace(manifest, name="a\0b", auditor_version="1\0"))
    publish(server, database, tmp_path / "run")
    assert server.query("SELECT audit, auditor_version FROM auditor.runs", database=database) == [("a␀b", "1␀")]


def test_views_have_the_newest_successful_run_of_each_audit(server: Server, database: str, tmp_path: Path) -> None:
    directory = write_days(tmp_path / "audits")
    folders = sorted(directory.iterdir())
    every_status(directory / "other")
    edit_manifest(directory / "other", lambda manifest: replace(manifest, name="other", state="within_tolerance"))
    every_status(directory / "partial")
    edit_manifest(directory / "partial", lambda manifest: replace(manifest, name="partial", state="partial"))
    for folder in folders:
        edit_manifest(folder, lambda manifest: replace(manifest, state="complete"))
    edit_manifest(folders[-1], lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    for folder in [*reversed(folders), directory / "other", directory / "partial"]:
        publish(server, database, folder)
    expected = {("nightly", folders[-2].name), ("other", "other")}
    assert set(server.query("SELECT audit, run FROM auditor.current_runs", database=database)) == expected
    modules = server.query("SELECT DISTINCT audit, run FROM auditor.current_modules", database=database)
    assert set(modules) == expected
    changes = server.query("SELECT run, change FROM auditor.current_changes", database=database)
    assert changes == [(run, change) for _, _, run, _, *_, change, _, _, _ in expected_rows(folders[-2], "changes")]
    assert len(changes) > 0


def test_a_schema_that_does_not_exist_has_no_runs(server: Server, database: str) -> None:
    assert destination(server, database).published_runs(["run"], TimeLimit(60)) == {}


def test_concurrent_publishers_of_one_run_leave_it_once(server: Server, database: str, tmp_path: Path) -> None:
    """They also create the schema concurrently."""
    every_status(tmp_path / "run")
    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(publish, server, database, tmp_path / "run") for _ in range(8)]:
            each.result()
    for table in TABLES:
        found = server.query(f"SELECT * FROM auditor.{table} ORDER BY run, 4", database=database)
        assert found == expected_rows(tmp_path / "run", table)


def test_a_run_that_cannot_be_read_leaves_what_was_published(server: Server, database: str, tmp_path: Path) -> None:
    fleet = [named(number) for number in range(2_000)]
    outcomes = [ok(device, ("ble", f"1.{number}")) for number, device in enumerate(fleet)]
    build(tmp_path / "run", fleet, outcomes)
    publish(server, database, tmp_path / "run")
    content = bytearray((tmp_path / "run" / MODULES).read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    (tmp_path / "run" / MODULES).write_bytes(content)
    with pytest.raises(RunFolderError, match="cannot be read"):
        publish(server, database, tmp_path / "run")
    assert server.query("SELECT count(*) FROM auditor.modules", database=database) == [(2_000,)]


def test_a_run_whose_rows_fail_half_way_leaves_nothing(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a file that another program damages while it is read."""
    every_status(tmp_path / "run")
    query = postgresql._csv_query
    broken = "SELECT * REPLACE (if(ordinal = 2, error('torn'), ordinal) AS ordinal) FROM ({})"
    monkeypatch.setattr(
        postgresql,
        "_csv_query",
        lambda run, name: broken.format(query(run, name)) if name == "modules" else query(run, name),
    )
    with pytest.raises(RunFolderError, match=r"cannot be read: .*torn"):
        publish(server, database, tmp_path / "run")
    assert server.query("SELECT count(*) FROM auditor.devices", database=database) == [(0,)]


PUBLISHER = """
import os, sys
from pathlib import Path
from auditor.concurrency import TimeLimit
from auditor.publish.postgresql import PostgresqlDestination, PostgresqlSettings
import psycopg
host, port, database, *folders = sys.argv[1:]
target = PostgresqlDestination(PostgresqlSettings(host=host, port=int(port), database=database, user="admin"))
for _ in sys.stdin:
    if (child := os.fork()) == 0:
        for folder in folders:
            target.publish(Path(folder), TimeLimit(60))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a publisher of the folders for each line that it reads; prints its process id, and how it ended."""

KILLS = int(os.environ.get("AUDITOR_KILLS", "8"))

COMPLETE = """SELECT r.run, r.devices, r.ok,
  (SELECT count(*) FROM auditor.devices d WHERE d.run = r.run),
  (SELECT count(DISTINCT (product_key, device_name)) FROM auditor.modules m WHERE m.run = r.run),
  (SELECT sum(modules) FROM auditor.devices d WHERE d.run = r.run),
  (SELECT count(*) FROM auditor.modules m WHERE m.run = r.run),
  (SELECT sum(devices) FROM auditor.inventory i WHERE i.run = r.run)
FROM auditor.runs r"""


def test_killed_publishers_leave_every_run_once_and_a_reader_sees_no_part(
    server: Server, database: str, tmp_path: Path
) -> None:
    fleet = [named(number) for number in range(1_000)]
    folders = []
    for night in range(2):
        outcomes = [ok(device, *((f"m{n}", f"1.{night}") for n in range(4))) for device in fleet]
        folders.append(build(tmp_path / f"run{night}", fleet, outcomes).folder)
    publish(server, database, folders[0])
    begun = time.monotonic()
    publish(server, database, folders[0])
    seconds = time.monotonic() - begun
    parts: list[tuple[Any, ...]] = []
    reads = 0
    stop = threading.Event()

    def read() -> None:
        nonlocal reads
        with server.connect(database=database) as connection:
            while not stop.is_set():
                for row in connection.execute(COMPLETE).fetchall():
                    _, devices, answered, stored_devices, reporting, modules, rows, counted = row
                    if not (devices == stored_devices == answered == reporting and modules == rows == counted):
                        parts.append(row)
                reads += 1
                time.sleep(0.005)

    reader = threading.Thread(target=read)
    reader.start()
    generator, killed = random.Random(11), 0
    command = [sys.executable, "-c", PUBLISHER, str(server.folder), str(server.port), database, *map(str, folders)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            for _ in range(KILLS):
                print(file=process.stdin, flush=True)
                child = int(process.stdout.readline())
                time.sleep(generator.uniform(0, 1.5 * seconds))  # the child publishes two runs
                os.kill(child, signal.SIGKILL)
                killed += int(process.stdout.readline()) == -signal.SIGKILL
            process.stdin.close()
        for folder in folders:
            publish(server, database, folder)
    finally:
        stop.set()
        reader.join()
    assert killed > KILLS // 2, killed
    assert reads > 5, reads
    assert parts == []
    for table in TABLES:
        found = server.query(f"SELECT * FROM auditor.{table} ORDER BY run, 4", database=database)
        assert found == [row for folder in folders for row in expected_rows(folder, table)]


def test_a_server_that_stands_still_ends_at_the_time_limit(tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    with run_server() as server:
        publish(server, "postgres", tmp_path / "run")
        with server.connect() as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE auditor.modules")
            before = time.monotonic()
            with pytest.raises(DestinationError, match="time is over"):
                publish(server, "postgres", tmp_path / "run", seconds=1)
            assert time.monotonic() - before < 5
        target = destination(server, "postgres")
        with target._connect(TimeLimit(1.5)) as connection, pytest.raises(psycopg.Error):  # noqa: PT012
            backends = [
                pid for (pid,) in server.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
            ]
            (pid,) = {connection.info.backend_pid} & set(backends)
            subprocess.run(["kill", "-STOP", str(pid)], check=True)
            connection.execute("SELECT 1")
        assert server.query("SELECT count(*) FROM auditor.runs") == [(1,)]
        subprocess.run(["kill", "-CONT", str(pid)], check=True)


def test_a_publisher_and_a_reader_need_few_privileges(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    succeed(tmp_path / "run")
    page = (Path(__file__).parents[2] / "docs" / "publishing-postgresql.md").read_text(encoding="utf-8")
    found = re.search(r"(CREATE ROLE.*?)(GRANT.*?)```", page, re.DOTALL)
    assert found is not None
    roles, grants = (part.replace("DATABASE iot", f"DATABASE {database}") for part in found.groups())
    server.query(f"{roles}; ALTER ROLE auditor_reader LOGIN")
    try:
        with pytest.raises(DestinationError, match=r"permission denied .*docs/publishing-postgresql\.md") as caught:
            publish(server, database, tmp_path / "run", user="auditor_publisher")
        assert not caught.value.retryable
        for statement in postgresql_schema.create_statements("auditor"):
            server.query(statement, database=database)
        server.query(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; {grants}", database=database)
        for _ in range(2):
            publish(server, database, tmp_path / "run", user="auditor_publisher")
        with server.connect("auditor_reader", database) as connection:
            rows = connection.execute("SELECT count(*) FROM auditor.current_devices").fetchall()
            assert rows == [(10,)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM auditor.runs")
        with server.connect("auditor_publisher", database) as connection:
            for statement in ("UPDATE auditor.runs SET state = ''", "DROP TABLE auditor.runs", "TRUNCATE auditor.runs"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
    finally:
        for role in ("auditor_publisher", "auditor_reader"):
            server.query(f"DROP OWNED BY {role}; DROP ROLE {role}", database=database)


def test_a_schema_of_an_older_version_is_migrated(
    server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_status(tmp_path / "run")
    succeed(tmp_path / "run")
    every_status(tmp_path / "older")
    with monkeypatch.context() as older:
        cut = {name: replace(table, columns=table.columns[:-1]) for name, table in TABLES.items() if name != "changes"}
        for module in (postgresql, postgresql_schema):
            older.setattr(module, "TABLES", cut)
            older.setattr(module, "TABLES_VERSION", TABLES_VERSION - 1)
        publish(server, database, tmp_path / "older")
        server.query("CREATE VIEW own AS SELECT * FROM auditor.current_modules", database=database)
    publish(server, database, tmp_path / "run")
    assert server.query("SELECT version FROM auditor.tables_version", database=database) == [(TABLES_VERSION,)]
    for name, table in TABLES.items():
        columns = ", ".join(column.name for column in table.columns)
        for view in (name, f"current_{name}"):
            found = server.query(
                f"SELECT {columns} FROM auditor.{view} WHERE run = 'run' ORDER BY 3, 4", database=database
            )
            assert found == expected_rows(tmp_path / "run", name)
    (last,) = server.query("SELECT high FROM auditor.inventory WHERE run = 'older' LIMIT 1", database=database)
    assert last == (None,)


def test_a_schema_of_a_newer_version_is_refused(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    publish(server, database, tmp_path / "run")
    server.query(f"UPDATE auditor.tables_version SET version = {TABLES_VERSION + 1}", database=database)
    with pytest.raises(DestinationError, match="update auditor"):
        publish(server, database, tmp_path / "run")
    assert server.query("SELECT count(*) FROM auditor.runs", database=database) == [(1,)]


def test_every_column_has_its_comment(server: Server, database: str, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    publish(server, database, tmp_path / "run")
    found = server.query(
        "SELECT c.relname, a.attname, col_description(c.oid, a.attnum) FROM pg_class c JOIN pg_attribute a "
        "ON a.attrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'auditor' AND c.relkind = 'r' AND a.attnum > 0 AND c.relname <> 'tables_version'",
        database=database,
    )
    assert set(found) == {
        (name, column.name, column.description) for name, table in TABLES.items() for column in table.columns
    }


def test_a_database_that_cannot_store_every_name_is_refused(server: Server, tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    server.query("DROP DATABASE IF EXISTS latin")
    server.query("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(DestinationError, match="its encoding is LATIN1; create a database with the encoding UTF8"):
        publish(server, "latin", tmp_path / "run")


CANARY = "canary-Zq7"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_server(authority: trustme.CA) -> Any:
    certificate = authority.issue_cert("localhost")
    files = {
        "server.crt": b"".join(part.bytes() for part in certificate.cert_chain_pems),
        "server.key": certificate.private_key_pem.bytes(),
    }
    rules = "hostssl all password_user 127.0.0.1/32 scram-sha-256\n"
    with run_server(tcp_rules=rules, files=files, settings={"ssl": "on"}) as running:
        running.query(f"CREATE ROLE password_user LOGIN SUPERUSER PASSWORD '{CANARY}'")
        yield running


def tls_settings(server: Server, authority: trustme.CA, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {
        "host": "localhost", "user": "password_user", "password": SecretSource(env="PG_CANARY"),
        "ca_file": str(tmp_path / "ca.pem"),
    } | settings  # fmt: skip


def test_a_password_goes_only_to_a_server_whose_certificate_is_trusted(
    tls_server: Server, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_status(tmp_path / "run")
    monkeypatch.setenv("PG_CANARY", CANARY)
    settings = tls_settings(tls_server, authority, tmp_path)
    publish(tls_server, "postgres", tmp_path / "run", **settings)
    assert tls_server.query("SELECT count(*) FROM auditor.runs") == [(1,)]
    for wrong in ({"ca_file": None}, {"host": "127.0.0.1"}):  # an unknown authority; a name that is not the server's
        with pytest.raises(DestinationError, match=r"certificate|does not match host name") as caught:
            publish(tls_server, "postgres", tmp_path / "run", **(settings | wrong))
        assert not caught.value.retryable


@pytest.mark.parametrize("place", ["env", "file", "command"])
def test_the_password_is_in_no_error_and_no_text(
    place: str, tls_server: Server, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_status(tmp_path / "run")
    wrong = f"wrong-{CANARY}"
    monkeypatch.setenv("PG_CANARY", wrong)
    (tmp_path / "secret").write_text(wrong)
    (tmp_path / "secret").chmod(0o600)
    source = {
        "env": SecretSource(env="PG_CANARY"),
        "file": SecretSource(file=str(tmp_path / "secret")),
        "command": SecretSource(command=("cat", str(tmp_path / "secret"))),
    }[place]
    settings = tls_settings(tls_server, authority, tmp_path, password=source)
    target = destination(tls_server, "postgres", **settings)
    with structlog.testing.capture_logs() as logs, pytest.raises(DestinationError) as caught:
        target.publish(tmp_path / "run", TimeLimit(60))
    assert "password authentication failed" in str(caught.value)
    assert not caught.value.retryable
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert CANARY not in f"{target!r} {target.describe()} {logs}"
    assert all(CANARY not in path.read_bytes().decode("latin-1") for path in (tmp_path / "run").iterdir())


def test_a_server_that_is_not_there_is_reported(tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    target = PostgresqlDestination(PostgresqlSettings(host=str(tmp_path), database="d", user="u"))
    with pytest.raises(DestinationError, match=r"^postgresql://.*:5432/d, schema auditor: .*No such file") as caught:
        target.publish(tmp_path / "run", TimeLimit(60))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"host": ""}, "host: is empty"),
        ({"database": "a\0b"}, "database: is empty, or has a control character"),
        ({"schema": "x" * 64}, "schema: has at most 63 bytes"),
        ({"schema": "pg_mine"}, "does not start with pg_"),
        ({"port": 0}, "port: 0 is no port"),
        ({"ssl_mode": "verify-ca"}, "ssl_mode: verify-ca needs ca_file"),
        ({"key_file": "key.pem"}, "certificate_file and key_file: give both"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    settings: dict[str, Any] = {"host": "db", "database": "d", "user": "u"} | wrong
    with pytest.raises(SettingsError, match=sentence):
        PostgresqlDestination(PostgresqlSettings(**settings))
