"""Reading a dataset: a run fetched with its digests checked, and SQL that reads nothing else."""

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from auditor.concurrency import TimeLimit
from auditor.errors import ObjectStoreError, RunFolderError, UsageError
from auditor.publish import dataset_reader
from auditor.publish.dataset import latest_key, read_dataset_run, run_key
from auditor.publish.dataset_reader import fetch_run, query_dataset
from auditor.publish.parquet_dataset import publish_to_store
from auditor.publish.tables import PublishedTable, open_published
from auditor.storage.object_store import open_store
from tests.runs.run_folders import build, every_status, named, ok

NAMES = ["20261121T020000Z-nightly", "20261122T020000Z-nightly"]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    fleet = [named(n) for n in range(5)]
    build(tmp_path / NAMES[0], fleet, [ok(d, ("ble", "1.0")) for d in fleet])
    every_status(tmp_path / NAMES[1])
    for name in NAMES:
        with open_published(tmp_path / name) as run:
            publish_to_store(run, open_store(str(tmp_path / "lake")), TimeLimit())
    return tmp_path / "lake"


def counts(directory: Path) -> list[tuple[object, ...]]:
    with query_dataset(directory, "SELECT run, count(*) FROM devices GROUP BY run ORDER BY run") as found:
        return [tuple(row) for row in found.table]


def test_a_fetched_run_is_a_dataset_with_the_same_rows(lake: Path, tmp_path: Path) -> None:
    store = open_store(str(lake))
    assert fetch_run(store, tmp_path / "copy").run == NAMES[0]  # the other one is partial
    assert counts(tmp_path / "copy") == counts(lake)[:1]
    latest = read_dataset_run(store, latest_key("nightly"))
    assert read_dataset_run(open_store(str(tmp_path / "copy")), latest_key("nightly")) == latest
    assert fetch_run(store, tmp_path / "copy", NAMES[1]).run == NAMES[1]
    assert counts(tmp_path / "copy") == counts(lake)
    assert read_dataset_run(open_store(str(tmp_path / "copy")), latest_key("nightly")) == latest
    assert (tmp_path / "copy" / run_key(NAMES[1])).read_bytes() == (lake / run_key(NAMES[1])).read_bytes()


def test_a_changed_file_is_not_fetched(lake: Path, tmp_path: Path) -> None:
    path = next((lake / "modules").rglob(f"{NAMES[0]}*.parquet"))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ObjectStoreError, match="is not the file that was published: its digest differs"):
        fetch_run(open_store(str(lake)), tmp_path / "copy")
    assert not (tmp_path / "copy" / "runs").exists()


def test_a_run_that_is_not_there_is_a_sentence(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has no run nothing; it has 2, the last one is {NAMES[1]}"):
        fetch_run(open_store(str(lake)), tmp_path / "copy", "nothing")
    with pytest.raises(UsageError, match="has no run that is successful; it has none"):
        fetch_run(open_store(str(tmp_path / "empty")), tmp_path / "copy")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('{lake}/devices/**/*.parquet')",
        "SELECT 1; SELECT 2",
        "COPY devices TO '/tmp/x'",
        "SELECT * FROM nothing",
    ],
)
def test_sql_reads_the_tables_and_nothing_else(lake: Path, sql: str) -> None:
    with pytest.raises(UsageError), query_dataset(lake, sql.format(lake=lake)) as found:
        list(found.table)


def test_versions_are_compared_in_sql(lake: Path) -> None:
    with query_dataset(lake, "SELECT count(*) FROM modules WHERE version_below(module_version, '2.0')") as found:
        assert [tuple(row) for row in found.table] != [(0,)]


def test_a_file_that_is_not_named_is_not_read(lake: Path) -> None:
    before = counts(lake)
    path = next((lake / "devices").rglob("*.parquet"))
    (path.parent / "other-000000000000.parquet").write_bytes(path.read_bytes())
    assert counts(lake) == before


def test_a_missing_file_or_a_link_is_an_error(lake: Path, tmp_path: Path) -> None:
    path = next((lake / "devices").rglob("*.parquet"))
    path.rename(tmp_path / "moved")
    with pytest.raises(RunFolderError, match="cannot be read: No such file"):
        counts(lake)
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(RunFolderError, match="reached by a link"):
        counts(lake)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no dataset of published runs"):
        counts(tmp_path)
    with pytest.raises(UsageError, match="fetch runs with auditor fetch"):
        counts(Path("s3://lake/x"))


@pytest.mark.parametrize("first", ["modules", "devices"])
def test_a_query_reads_a_run_again_that_is_published_again_meanwhile(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    define, expected = dataset_reader._read_parquet, counts(lake)
    left = [1]

    def publish_again(table: PublishedTable, *others: Any) -> str:
        query = define(table, *others)
        if table == first and left:
            left.pop()
            path = next((lake / table).rglob(f"{NAMES[0]}-*.parquet"))
            new = path.with_name(f"{NAMES[0]}-{'0' * 12}.parquet")
            content = (lake / run_key(NAMES[0])).read_bytes()
            path.rename(new)
            old_key, new_key = (each.relative_to(lake).as_posix().encode() for each in (path, new))
            (lake / run_key(NAMES[0])).write_bytes(content.replace(old_key, new_key))
        return query

    monkeypatch.setattr(dataset_reader, "_read_parquet", publish_again)
    sql = f"SELECT run, count(*) FROM {first} GROUP BY run ORDER BY run"
    with query_dataset(lake, sql) as found:
        assert not left
        assert len(list(found.table)) == 2
    assert counts(lake) == expected


def test_a_file_that_is_deleted_during_a_query_is_no_error_of_its_sql(lake: Path) -> None:
    with query_dataset(lake, "FROM devices") as found:
        for path in (lake / "devices").rglob("*.parquet"):
            path.unlink()
        with pytest.raises(RunFolderError, match="is being published again; repeat the query"):
            list(found.table)


def test_a_run_that_is_not_successful_is_not_fetched_as_the_latest(lake: Path, tmp_path: Path) -> None:
    fetch_run(open_store(str(lake)), tmp_path / "copy", NAMES[1])
    assert not (tmp_path / "copy" / "latest").exists()


def test_files_that_a_run_no_longer_has_are_deleted_where_it_is_fetched(lake: Path, tmp_path: Path) -> None:
    store, copy = open_store(str(lake)), tmp_path / "copy"
    first = fetch_run(store, copy)
    with open_published(tmp_path / NAMES[0]) as run:
        publish_to_store(run, store, TimeLimit())
    again = fetch_run(store, copy)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*.parquet")} == {file.key for file in again.files}
    assert not {file.key for file in first.files} & {file.key for file in again.files}


def test_a_run_is_named_with_and_without_escapes(tmp_path: Path) -> None:
    name = "20261121T020000Z-ü 100%"
    build(tmp_path / name, [named(0)], [ok(named(0), ("ble", "1.0"))])
    store = open_store(str(tmp_path / "lake"))
    with open_published(tmp_path / name) as run:
        publish_to_store(run, store, TimeLimit())
    for given in (name, PurePosixPath(run_key(name)).stem):
        assert fetch_run(store, tmp_path / "copy", given).run == name
    with pytest.raises(UsageError, match=f"the last one is {name}$"):
        fetch_run(store, tmp_path / "copy", "nothing")


def test_a_copy_of_a_document_does_not_double_its_run(lake: Path) -> None:
    path = lake / run_key(NAMES[0])
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(RunFolderError, match=rf"runs/copy.json: is no published run: it is runs/{NAMES[0]}.json"):
        counts(lake)
    copy.write_bytes(path.read_bytes().replace(f'"run":"{NAMES[0]}"'.encode(), b'"run":"copy"'))
    with pytest.raises(RunFolderError, match=r"is no file of devices"):
        counts(lake)
