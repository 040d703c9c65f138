"""Files that libraries open by name, where another user can rename the folders above them; a second user needs root."""

import os
import shutil
from pathlib import Path

import duckdb
import pytest

from auditor.errors import RunNotWritableError
from auditor.storage.database import describe_repeated_rows, open_database, write_rows
from auditor.storage.descriptors import keeps_modes, pin_files, writable_path
from auditor.storage.files import create_own_file, is_special_output, read_regular_file
from auditor.storage.foreign_access import find_foreign_access
from tests.other_user import OTHER_USER, needs_root


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "bashrc"
    path.write_bytes(b"mine")
    return path


@pytest.mark.parametrize("form", ["FORMAT parquet", "FORMAT csv, HEADER", "FORMAT json"])
def test_rows_are_written_to_a_new_file_and_over_an_old_one(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows*[1]'s"
    path.write_bytes(b"x" * 10_000)
    path.chmod(0o640)
    with open_database() as database:
        for _ in range(2):
            write_rows(database, "SELECT 7 AS a", path, form)
            assert 0 < path.stat().st_size < 1_000
            assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["rows", "tmp_rows"])
def test_rows_do_not_go_through_a_link(tmp_path: Path, precious: Path, where: str) -> None:
    (tmp_path / where).symlink_to(precious)
    with open_database() as database:
        if where == "rows":
            with pytest.raises(OSError, match="symbolic links"):
                write_rows(database, "SELECT 7 AS a", tmp_path / "rows")
            with pytest.raises(OSError, match="symbolic links"):
                create_own_file(tmp_path / "rows")
        else:  # the name that DuckDB's own temporary file would have
            (tmp_path / "rows").touch()
            write_rows(database, "SELECT 7 AS a", tmp_path / "rows")
    assert precious.read_bytes() == b"mine"


def test_rows_go_to_the_file_that_was_opened(tmp_path: Path, precious: Path) -> None:
    (tmp_path / "work").mkdir()
    with writable_path(tmp_path / "work" / "rows") as target:
        (tmp_path / "work").rename(tmp_path / "moved")
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "rows").symlink_to(precious)
        with duckdb.connect() as database:
            database.execute(f"COPY (SELECT 7 AS a) TO '{target}' (FORMAT csv, USE_TMP_FILE false)")
    assert (tmp_path / "moved" / "rows").read_text() == "a\n7\n"
    assert precious.read_bytes() == b"mine"


def test_an_error_names_the_file_and_not_its_descriptor(tmp_path: Path) -> None:
    with open_database() as database, pytest.raises(duckdb.Error) as refused:
        write_rows(database, f"FROM read_csv('{tmp_path}/missing.csv')", tmp_path / "rows")
    assert "/proc/" not in str(refused.value)


@needs_root
def test_nothing_is_spilled_into_a_folder_of_another_user(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, OTHER_USER, OTHER_USER)
    with pytest.raises(OSError, match=r"belongs to another user \(uid 54321\)"):
        open_database(work)
    assert list(work.iterdir()) == []


def test_what_is_spilled_stays_in_the_folder_that_was_opened(tmp_path: Path) -> None:
    with open_database(tmp_path / "work", memory="32MB") as database:
        assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700
        (tmp_path / "work").rename(tmp_path / "moved")
        (tmp_path / "work").mkdir()
        query = "SELECT count(*) FROM (SELECT hash(i) || repeat('x', 80) AS s FROM range(400_000) t(i) ORDER BY s LIMIT 399_999)"
        assert database.execute(query).fetchall() == [(399_999,)]
        assert list((tmp_path / "work").iterdir()) == []


@needs_root
def test_files_of_a_folder_of_another_user_are_those_that_were_checked(tmp_path: Path, precious: Path) -> None:
    theirs, place = tmp_path / "theirs", tmp_path / "place"
    theirs.mkdir()
    place.mkdir(0o700)
    (theirs / "devices.jsonl").write_text("one\n")
    assert pin_files(theirs, ("devices.jsonl",), place) == theirs  # the caller's own
    for path in (theirs / "devices.jsonl", theirs):
        os.chown(path, OTHER_USER, OTHER_USER)
    pinned = pin_files(theirs, ("devices.jsonl", "plan.parquet"), place)
    (theirs / "devices.jsonl").unlink()
    (theirs / "devices.jsonl").symlink_to(precious)
    assert [path.name for path in pinned.iterdir()] == ["devices.jsonl"]
    with open_database() as database:
        assert database.execute(f"SELECT content FROM read_text('{pinned}/devices.jsonl')").fetchall() == [("one\n",)]
    with pytest.raises(OSError, match="is a link"):
        pin_files(theirs, ("devices.jsonl",), place)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  numbers, not paths
    shutil.rmtree(place)
    pin_files(tmp_path, (), place)
    assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208  numbers, not paths


def test_a_small_file_of_very_many_rows_is_not_read(tmp_path: Path) -> None:
    with open_database(threads=2) as database:
        write_rows(database, "SELECT 1 AS a FROM range(2_000_000)", tmp_path / "equal", "FORMAT parquet")
        write_rows(database, "SELECT hash(i) AS a FROM range(1_100_000) t(i)", tmp_path / "distinct")
        assert (tmp_path / "equal").stat().st_size < 30_000
        assert "2,000,000 rows in" in str(describe_repeated_rows(database, tmp_path / "equal"))
        assert describe_repeated_rows(database, tmp_path / "distinct") is None


def test_a_folder_above_that_others_can_write_is_found(tmp_path: Path) -> None:
    audits = tmp_path / "shared" / "mine" / "audits"
    audits.mkdir(parents=True)
    assert find_foreign_access(audits) is None  # although it is below /tmp, which has the sticky bit
    (tmp_path / "shared").chmod(0o777)
    assert find_foreign_access(audits) == f"{tmp_path}/shared can be written by other users"
    (tmp_path / "link").symlink_to(audits)
    assert find_foreign_access(tmp_path / "link") == f"{tmp_path}/shared can be written by other users"
    (tmp_path / "shared").chmod(0o1777)
    assert find_foreign_access(tmp_path / "link") is None


@needs_root
def test_output_into_a_pipe_or_device_of_another_user_is_refused(tmp_path: Path) -> None:
    assert is_special_output(Path("/dev/null"))
    assert not is_special_output(tmp_path / "new.csv")
    os.mkfifo(tmp_path / "pipe")
    assert is_special_output(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    assert is_special_output(tmp_path / "link")
    os.chown(tmp_path / "pipe", OTHER_USER, OTHER_USER)
    os.lchown(tmp_path / "link", OTHER_USER, OTHER_USER)
    with pytest.raises(RunNotWritableError, match="is a pipe or a device of another user"):
        is_special_output(tmp_path / "pipe")
    with pytest.raises(RunNotWritableError, match="is a link of another user"):
        is_special_output(tmp_path / "link")


def test_a_file_system_that_keeps_modes_is_recognized(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert keeps_modes(tmp_path)
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_a_file_of_the_kernel_without_content_is_refused() -> None:
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("no log of the kernel")
    try:
        descriptor = os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        pytest.skip("the log of the kernel cannot be opened")
    while True:
        try:
            os.read(descriptor, 1 << 16)
        except BlockingIOError:
            break
        except OSError:
            pytest.skip("the log of the kernel cannot be read")
    os.close(descriptor)
    with pytest.raises(OSError, match="has no content"):
        read_regular_file(Path("/proc/kmsg"))
