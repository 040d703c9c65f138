"""The dataset of published runs: its rows, its names, what a reader sees while it changes, and what is left of kills."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import duckdb
import orjson
import pytest

from auditor.concurrency import TimeLimit
from auditor.config.settings import PublishSettings
from auditor.errors import DestinationError, RunFolderError, SettingsError
from auditor.publish import parquet_dataset
from auditor.publish.dataset import DatasetRun, escape_segment, latest_key, read_dataset_run, run_key
from auditor.publish.dataset_reader import query_dataset
from auditor.publish.destinations import Destination, open_destination
from auditor.publish.parquet_dataset import publish_to_store
from auditor.publish.publisher import publish_run
from auditor.publish.tables import TABLES, PublishedRun, PublishedTable, open_published
from auditor.query.run import Run
from auditor.storage.database import is_interruption
from auditor.storage.object_store import MemoryStore, ObjectStore, open_store
from tests.database import run_interrupted_query
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, named, ok

NAME = "20261122T020000Z-nightly"
MANY_ROWS = 10**8
"""Rows that take a minute to write, so that a writer that is not interrupted does not run for ever."""
ACCOUNT = "a%/b=c ü#?*.+&'\"😀 中"
ATTRIBUTES = {text: text for text in HOSTILE if text.strip()}


def hostile_run(folder: Path) -> Path:
    fleet = [named(n, account=account) for account in ("demo", ACCOUNT, "0017") for n in range(20)]
    outcomes = [ok(d, ("ble", "1.0"), ("mcu", HOSTILE[n % len(HOSTILE)])) for n, d in enumerate(fleet)]
    return build(folder, fleet, outcomes, details=[{"attributes": ATTRIBUTES}] * len(fleet)).folder


def contract_rows(folder: Path, table: PublishedTable) -> list[tuple[Any, ...]]:
    with open_published(folder) as run:
        return sorted(run.database.execute(run.query(table)).fetchall(), key=repr)


def dataset_rows(directory: Path, table: str) -> list[tuple[Any, ...]]:
    with query_dataset(directory, f"FROM {table}") as found:
        return [tuple(row) for row in found.table]


def publish(folder: Path, directory: Path) -> DatasetRun:
    with open_published(folder) as run:
        return publish_to_store(run, open_store(str(directory)), TimeLimit())


@pytest.mark.slow
@pytest.mark.parametrize("make", [hostile_run, lambda path: every_status(path).folder])
def test_every_table_has_the_rows_of_its_contract_in_their_order(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    run = make(tmp_path / NAME)
    publish(run, tmp_path / "lake")
    for table in get_args(PublishedTable):
        expected = contract_rows(run, table)
        names = ", ".join(column.name for column in TABLES[table].columns)
        with query_dataset(tmp_path / "lake", f"SELECT {names} FROM {table}") as found:
            assert sorted((tuple(row) for row in found.table), key=repr) == _as_result(run, table, expected), table


def _as_result(run: Path, table: PublishedTable, expected: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows as a result table has them, whose values are those of its formats."""
    from functools import partial

    from auditor.storage.tables import ResultTable, translate_read_errors

    with open_published(run) as opened:
        found = ResultTable(opened.database, opened.query(table), reading=partial(translate_read_errors, run))
        return sorted((tuple(row) for row in found), key=repr)


def test_hostile_names_and_attributes_arrive_unchanged_in_any_reader_of_hive_partitions(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / NAME)
    publish(run, tmp_path / "lake")
    types = "{'audit': VARCHAR, 'night': DATE, 'account': VARCHAR}"
    source = f"read_parquet('{tmp_path}/lake/*/audit=*/*/*/*.parquet', hive_partitioning=true, hive_types={types}, union_by_name=true)"
    accounts = {name for (name,) in duckdb.execute(f"SELECT DISTINCT account FROM {source}").fetchall()}
    assert accounts == {"demo", ACCOUNT, "0017"}
    versions = {
        name
        for (name,) in duckdb.execute(
            f"SELECT DISTINCT module_version FROM {source} WHERE module_version IS NOT NULL AND module_name = 'mcu'"
        ).fetchall()
    }
    assert versions == set(HOSTILE)
    attributes = duckdb.execute(f"SELECT DISTINCT attributes FROM {source} WHERE attributes IS NOT NULL").fetchall()
    assert [dict(found) for (found,) in attributes] == [ATTRIBUTES]


def test_other_libraries_read_the_dataset(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.dataset")
    run = hostile_run(tmp_path / NAME)
    publish(run, tmp_path / "lake")
    table = pq.dataset(tmp_path / "lake" / "modules", partitioning=pq.partitioning(flavor="hive")).to_table()
    assert set(table["account"].to_pylist()) == {"demo", ACCOUNT, "0017"}
    assert table.num_rows == 120


def test_numbers_equal_those_of_the_inventory(tmp_path: Path) -> None:
    run = every_status(tmp_path / NAME).folder
    publish(run, tmp_path / "lake")
    with Run(run) as opened:
        expected = {(v.product_key, v.module_name, v.module_version, v.devices) for v in opened.inventory()}
    query = """SELECT product_key, module_name, module_version, count(DISTINCT ordinal) FROM modules
      WHERE product_key IS NOT NULL GROUP BY ALL"""
    with query_dataset(tmp_path / "lake", query) as found:
        counted = {tuple(row) for row in found.table}
    with query_dataset(
        tmp_path / "lake", "SELECT product_key, module_name, module_version, devices FROM inventory"
    ) as found:
        listed = {tuple(row) for row in found.table}
    assert listed == expected
    assert counted <= expected


def repeat_rows(run: PublishedRun, table: PublishedTable, rows: int) -> None:
    """Let a table have its first row many times, with ordinals."""
    run.database.execute(f"CREATE TABLE first_row AS {run.query(table)} LIMIT 1")
    repeated = f"SELECT first_row.* REPLACE (i AS ordinal) FROM first_row, range({rows}) AS numbers (i)"
    run.database.execute(f"CREATE OR REPLACE VIEW published_{table} AS {repeated}")


def test_rows_of_a_file_are_in_their_order_in_row_groups_of_one_size(tmp_path: Path) -> None:
    with open_published(every_status(tmp_path / NAME).folder) as run:
        repeat_rows(run, "modules", 200_000)
        publish_to_store(run, open_store(str(tmp_path / "lake")), TimeLimit())
    (path,) = (tmp_path / "lake" / "modules").rglob("*.parquet")
    ordered = f"SELECT bool_and(ordinal = file_row_number) FROM read_parquet('{path}', file_row_number = true)"
    assert duckdb.execute(ordered).fetchone() == (True,)
    groups = f"SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata('{path}') ORDER BY 1"
    assert [rows for _, rows in duckdb.execute(groups).fetchall()] == [61_440, 61_440, 61_440, 15_680]


def call_before_writing(monkeypatch: pytest.MonkeyPatch, table: PublishedTable, call: Callable[[], object]) -> None:
    """Call a function in the writer of a table before it writes."""
    write = parquet_dataset._write_parquet

    def call_and_write(*arguments: Any) -> int:
        if arguments[3].name == f"{table}.parquet":
            call()
        return write(*arguments)

    monkeypatch.setattr(parquet_dataset, "_write_parquet", call_and_write)


def assert_no_run(lake: Path) -> None:
    """Assert that no reader sees a run, and that what was stored of it is whole files."""
    assert not [*lake.glob("runs/*"), *lake.rglob("latest.json"), *lake.rglob(".*.new")]
    for path in lake.rglob("*.parquet"):
        duckdb.execute(f"SELECT count(*) FROM '{path}'")


def test_an_interrupt_ends_the_writer_of_a_large_file_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    call_before_writing(monkeypatch, "inventory", interrupt.start)
    with open_published(every_status(tmp_path / NAME).folder) as run:
        repeat_rows(run, "inventory", MANY_ROWS)
        before = time.monotonic()
        with pytest.raises((KeyboardInterrupt, RuntimeError)) as raised:
            publish_to_store(run, open_store(str(tmp_path / "lake")), TimeLimit())
        assert time.monotonic() - before < 10
    assert isinstance(raised.value, KeyboardInterrupt) or is_interruption(raised.value)
    assert_no_run(tmp_path / "lake")


def test_an_error_of_a_writer_ends_the_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        time.sleep(0.2)  # until the other one writes
        raise OSError(28, "No space left on device")

    call_before_writing(monkeypatch, "changes", fail)
    with open_published(every_status(tmp_path / NAME).folder) as run:
        repeat_rows(run, "inventory", MANY_ROWS)
        before = time.monotonic()
        with pytest.raises(OSError, match="No space left"):
            publish_to_store(run, open_store(str(tmp_path / "lake")), TimeLimit())
        assert time.monotonic() - before < 10
    assert_no_run(tmp_path / "lake")


def test_an_interrupt_during_a_query_of_publishing_is_no_failure_of_the_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next destination would be published to."""
    run = every_status(tmp_path / NAME).folder
    monkeypatch.setattr(parquet_dataset, "_accounts", lambda run: run_interrupted_query(run.database))
    with pytest.raises(KeyboardInterrupt):
        publish_run(run, PublishSettings(name="lake", type="files", options={"to": str(tmp_path / "lake")}))
    assert not (tmp_path / "lake").exists()


class Watched(MemoryStore):
    """A storage that calls a reader after each change, and can die at one."""

    def __init__(self, changed: Callable[["Watched"], None] = lambda _: None) -> None:
        super().__init__()
        self.changed, self.left = changed, 10**9

    def put(self, key: str, content: bytes) -> None:
        self._spend()
        super().put(key, content)
        self.changed(self)

    def delete(self, keys: Any) -> None:
        for key in keys:
            self._spend()
            super().delete([key])
            self.changed(self)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt  # what no code of ours handles, as a kill


def seen(store: ObjectStore, name: str) -> tuple[str, int] | None:
    """Return what a reader that follows the contract sees of a run: its digest and rows; None: nothing."""
    document = read_dataset_run(store, run_key(name))
    if document is None:
        return None
    rows = 0
    for file in document.files:
        content = store.get(file.key)
        assert len(content) == file.bytes
        rows += file.rows
    return document.digest, rows


def test_at_any_kill_a_reader_sees_all_of_a_run_or_nothing_and_the_next_attempt_completes_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / NAME, tmp_path / "new" / NAME
    fleet = [named(n, account=a) for a in ("eu", "us") for n in range(4)]
    build(old, fleet, [ok(d, ("ble", "1.0")) for d in fleet[:6]])
    build(new, fleet, [ok(d, ("ble", "1.0")) for d in fleet])  # as it was resumed
    with open_published(old) as first, open_published(new) as second:
        whole: dict[str, int] = {}
        for run in (first, second):
            document = publish_to_store(run, MemoryStore(), TimeLimit())
            whole[document.digest] = sum(file.rows for file in document.files)

        def check(store: Watched) -> None:
            found = seen(store, NAME)
            assert found is None or whole[found[0]] == found[1]
            latest = read_dataset_run(store, latest_key("nightly"))
            stored = {each.key for each in store.list()}
            assert latest is None or stored.issuperset(file.key for file in latest.files)

        changes = 10**9
        kill = 0
        while kill < changes:
            store = Watched(check)
            for run in (first, second):
                store.left = kill if run is first else kill // 2
                try:
                    publish_to_store(run, store, TimeLimit())
                    changes = kill if run is first else changes
                except KeyboardInterrupt:
                    check(store)
                published = read_dataset_run(store, run_key(NAME))
                if published is not None and published.cleaned and published.digest == second.digest:
                    assert read_dataset_run(store, latest_key("nightly")) == published
            store.left = 10**9
            publish_to_store(second, store, TimeLimit())
            assert seen(store, NAME) == (second.digest, whole[second.digest])
            named_files = {file.key for file in read_dataset_run(store, run_key(NAME)).files}  # type: ignore[union-attr]
            assert {each.key for each in store.list()} == {*named_files, run_key(NAME), "latest/nightly.json"}
            kill += 1
        assert kill > 8


def test_an_attempt_is_continued_and_files_that_are_damaged_are_written_again(tmp_path: Path) -> None:
    run = every_status(tmp_path / NAME).folder
    document = publish(run, tmp_path / "lake")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*.parquet")}
    path = tmp_path / "lake" / run_key(NAME)
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"cleaned": False}))
    publish(run, tmp_path / "lake")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lake").rglob("*.parquet")} == before
    damaged = tmp_path / "lake" / document.files[0].key
    damaged.write_bytes(bytes(damaged.stat().st_size))
    repaired = publish(run, tmp_path / "lake")
    assert not {file.key for file in repaired.files} & {file.key for file in document.files}
    assert len(dataset_rows(tmp_path / "lake", "devices")) == len(contract_rows(run, "devices"))
    assert len(list((tmp_path / "lake").rglob("*.parquet"))) == len(repaired.files)


@pytest.mark.slow
def test_another_run_of_the_same_name_is_not_replaced_but_a_resumed_one_is(tmp_path: Path) -> None:
    """Such as that of another machine with the same settings and the same timetable."""
    both = [named(0), named(1, account="third")]
    parts = {"whole": both, "fewer": both[:1], "start": both, "resumed": both}
    for name, fleet in parts.items():
        build(tmp_path / name / NAME, fleet, [ok(device, ("ble", name)) for device in fleet])
    edit_manifest(tmp_path / "start" / NAME, lambda m: replace(m, started_at="2026-11-22T02:00:09Z"))
    edit_manifest(tmp_path / "fewer" / NAME, lambda m: replace(m, state="partial"))
    publish(tmp_path / "whole" / NAME, tmp_path / "lake")
    before = sorted(dataset_rows(tmp_path / "lake", "modules"), key=str)  # files are read concurrently
    for name in ("fewer", "start"):
        with pytest.raises(DestinationError, match=r"has another run of the name .*a name of its own") as caught:
            publish(tmp_path / name / NAME, tmp_path / "lake")
        assert not caught.value.retryable
    assert sorted(dataset_rows(tmp_path / "lake", "modules"), key=str) == before
    publish(tmp_path / "fewer" / NAME, tmp_path / "second")
    publish(tmp_path / "resumed" / NAME, tmp_path / "second")  # a resume of a partial run may add an account
    assert len(dataset_rows(tmp_path / "second", "modules")) == len(both)


@pytest.mark.slow
def test_latest_is_the_newest_successful_run(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(2)]
    names = [f"202611{day}T020000Z-nightly" for day in (20, 21, 22, 23)]
    for name in names:
        build(tmp_path / name, fleet, [ok(d, ("ble", "1.0")) for d in fleet])
        edit_manifest(tmp_path / name, lambda m, n=name: replace(m, started_at=f"2026-11-{n[6:8]}T02:00:00Z"))  # type: ignore[misc]
    edit_manifest(tmp_path / names[3], lambda m: replace(m, state="partial"))
    for name in (names[1], names[2], names[0], names[3]):
        publish(tmp_path / name, tmp_path / "lake")
    latest = orjson.loads((tmp_path / "lake" / "latest" / "nightly.json").read_bytes())
    assert latest["run"] == names[2]
    assert [row[0] for row in dataset_rows(tmp_path / "lake", "(SELECT run FROM runs)")] == names[::-1]


class TestDestination:
    def opened(self, tmp_path: Path) -> Destination:
        return open_destination(PublishSettings(name="lake", type="files", options={"to": str(tmp_path / "lake")}))

    def test_it_reports_the_runs_that_it_has_completely(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = every_status(tmp_path / NAME).folder
        destination = self.opened(tmp_path)
        assert destination.published_runs([NAME], TimeLimit()) == {}
        destination.publish(run, TimeLimit())
        with open_published(run) as opened:
            digest = opened.digest
        assert destination.published_runs([NAME, "other"], TimeLimit()) == {NAME: digest}
        file = next((tmp_path / "lake").rglob("modules/**/*.parquet"))
        file.rename(tmp_path / "moved")
        assert destination.published_runs([NAME], TimeLimit()) == {}
        (tmp_path / "moved").rename(file)
        path = tmp_path / "lake" / run_key(NAME)
        path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"cleaned": False}))
        assert destination.published_runs([NAME], TimeLimit()) == {}

    def test_a_time_limit_that_is_over_ends_it_before_the_run_is_seen(self, tmp_path: Path) -> None:
        run = every_status(tmp_path / NAME).folder
        with pytest.raises(DestinationError, match="not enough time; give more with timeout"):
            self.opened(tmp_path).publish(run, TimeLimit(0))
        assert not (tmp_path / "lake" / "runs").exists()

    def test_a_name_that_is_too_long_is_a_sentence(self, tmp_path: Path) -> None:
        account = "%" * 100
        run = build(tmp_path / NAME, [named(0, account=account)], [ok(named(0, account=account), ("ble", "1.0"))])
        with pytest.raises(DestinationError, match="is no key: a part of it is empty, a dot, or too long") as caught:
            self.opened(tmp_path).publish(run.folder, TimeLimit())
        assert not caught.value.retryable

    def test_a_damaged_run_is_an_error_of_the_run(self, tmp_path: Path) -> None:
        run = every_status(tmp_path / NAME).folder
        (run / "modules.parquet").write_bytes(b"PAR1 damaged PAR1")
        with pytest.raises(RunFolderError):
            self.opened(tmp_path).publish(run, TimeLimit())
        assert not (tmp_path / "lake" / "runs").exists()

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"run": 1}', b"\xff", b"[" * 100_000])
    def test_a_damaged_document_is_written_again(self, tmp_path: Path, content: bytes) -> None:
        run = build(tmp_path / NAME, [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
        before = publish(run, tmp_path / "lake")
        for key in (run_key(NAME), latest_key("nightly")):
            (tmp_path / "lake" / key).write_bytes(content)
        destination = self.opened(tmp_path)
        assert destination.published_runs([NAME], TimeLimit()) == {}
        destination.publish(run, TimeLimit())
        assert destination.published_runs([NAME], TimeLimit()) == {NAME: before.digest}
        store = open_store(str(tmp_path / "lake"))
        after = read_dataset_run(store, run_key(NAME))
        assert after is not None
        assert not {file.key for file in after.files} & {file.key for file in before.files}
        assert read_dataset_run(store, latest_key("nightly")) == after

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({}, "has no to"),
            ({"too": "x", "to": "x"}, "too is not an option; did you mean to"),
            ({"to": " "}, "to: is empty; give a directory"),
            ({"to": "s3:/lake/x"}, "to: s3:/lake/x: is no address; it needs ://"),
            ({"to": "ftp://x"}, "give a directory, or an address"),
            ({"to": "lake", "region": "x"}, "a directory has no such option"),
        ],
    )
    def test_options_that_cannot_be_used_are_refused(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(SettingsError, match=f'publish "lake": .*{sentence}'):
            open_destination(PublishSettings(name="lake", type="files", options=options))

    def test_an_unknown_type_names_those_that_exist(self) -> None:
        with pytest.raises(SettingsError, match='"fles" is no type of destination; the types are files, postgresql'):
            open_destination(PublishSettings(name="lake", type="fles"))


@pytest.mark.parametrize("text", [ACCOUNT, ".", "..", "\u202e\n", "a/b", "%2F", "demo", "0017", "é" * 100])
def test_names_become_parts_of_paths_and_back(text: str) -> None:
    from urllib.parse import unquote

    escaped = escape_segment(text)
    assert "/" not in escaped
    assert escaped.isprintable()
    assert unquote(escaped) == text
