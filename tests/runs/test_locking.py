import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from auditor.errors import FleetError, RunFolderError, RunNotWritableError
from auditor.runs import locking as room
from auditor.runs.locking import (
    LOCK,
    RunLock,
    create_run_folder,
    directory_lock,
    is_locked,
    remove_stale_folders,
    was_killed,
)
from auditor.runs.manifest import read_manifest
from auditor.runs.retention import prune_runs
from tests.other_user import OTHER_USER, as_other_user, let_others_enter, needs_root
from tests.runs.run_folders import named, running

NOW = 1_795_312_800.9

Making = Callable[..., Path]


def fill(folder: Path) -> None:
    (folder / "run.json").write_text("{}")


def run_of(name: str) -> Callable[[Path], None]:
    def fill_with_a_run(folder: Path) -> None:
        running(folder, [named(0)], [], name=name)

    return fill_with_a_run


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Making]:
    """Makes a run folder that is held until the test's end, or not."""
    holds: list[RunLock] = []

    def new(name: str = "nightly", *, directory: Path = tmp_path, held: bool = False) -> Path:
        folder, hold = create_run_folder(directory, name, run_of(name), now=NOW)
        holds.append(hold)
        if not held:
            hold.release()
        return folder

    yield new
    for hold in holds:
        hold.release()


def test_a_run_folder_is_named_by_its_time_and_has_its_live_files(tmp_path: Path) -> None:
    folder, hold = create_run_folder(tmp_path / "audits" / "deep", "nightly", fill, now=NOW)
    with hold:
        assert folder == tmp_path / "audits" / "deep" / "20261122T020000Z-nightly"
        assert sorted(path.name for path in folder.iterdir()) == [
            ".lock",
            "devices.jsonl",
            "failures.jsonl",
            "run.json",
        ]
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not (folder / ".lock").exists()


def test_a_folder_is_visible_once_it_is_filled_and_locked(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def look(folder: Path) -> None:
        seen.extend((path.name, is_locked(path)) for path in tmp_path.iterdir())
        fill(folder)

    folder, hold = create_run_folder(tmp_path, "nightly", look, now=NOW)
    ((name, held),) = seen
    assert name.startswith(".new-")
    assert held
    assert is_locked(folder)
    hold.release()
    assert not is_locked(folder)


@needs_root
def test_another_user_sees_whether_a_run_is_in_progress(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0)], []).folder
    manifest = read_manifest(folder)
    let_others_enter(folder)
    with RunLock(folder):
        assert "PermissionError" in str(as_other_user((folder / LOCK).read_bytes))
        assert as_other_user(lambda: (is_locked(folder), was_killed(folder, manifest))) == (True, False)
    (folder / LOCK).touch(0o600)
    assert as_other_user(lambda: (is_locked(folder), was_killed(folder, manifest))) == (False, True)


@pytest.mark.parametrize("error", [FleetError("bad rows"), KeyboardInterrupt(), ValueError("a bug")])
def test_a_failed_fill_leaves_no_folder(tmp_path: Path, error: BaseException) -> None:
    filled: list[Path] = []

    def broken(folder: Path) -> None:
        fill(folder)
        filled.append(folder)
        raise error

    with pytest.raises(type(error)):
        create_run_folder(tmp_path, "nightly", broken, now=NOW)
    assert len(filled) == 1
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_a_folder_that_is_replaced_while_it_is_filled_changes_nothing_elsewhere(tmp_path: Path) -> None:
    audits, home = tmp_path / "audits", tmp_path / "home"
    home.mkdir(0o755)
    (home / "key").write_text("mine")
    (home / "key").chmod(0o644)
    audits.mkdir(0o777)
    os.chown(audits, OTHER_USER, OTHER_USER)

    def fill_and_replace(folder: Path) -> None:
        fill(folder)
        folder.rename(audits / "moved")
        folder.symlink_to(home)

    folder, lock = create_run_folder(audits, "nightly", fill_and_replace, now=NOW, group_readable=True)
    with lock, pytest.raises(RunNotWritableError, match="was replaced by another folder while this run was written"):
        lock.refuse_replaced(folder)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "key")] == [0o755, 0o644]
    assert [path.name for path in home.iterdir()] == ["key"]
    assert stat.S_IMODE((audits / "moved" / "run.json").stat().st_mode) == 0o640


@needs_root
@pytest.mark.parametrize("replacement", ["link", "folder of another user"])
def test_a_folder_that_is_replaced_before_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacement: str
) -> None:
    audits, home = tmp_path / "audits", tmp_path / "home"
    home.mkdir(0o755)
    create = Path.mkdir

    def create_and_replace(path: Path, mode: int = 0o777, **options: bool) -> None:
        create(path, mode, **options)
        if path.name.startswith(".new-"):
            path.rmdir()
            if replacement == "link":
                path.symlink_to(home)
            else:
                create(path, 0o777)
                os.chown(path, OTHER_USER, OTHER_USER)

    monkeypatch.setattr(Path, "mkdir", create_and_replace)
    with pytest.raises(RunNotWritableError):
        create_run_folder(audits, "nightly", fill, now=NOW)
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert list(home.iterdir()) == []


def test_a_directory_whose_runs_others_can_replace_is_reported(
    tmp_path: Path, make: Making, capfd: pytest.CaptureFixture[str]
) -> None:
    audits = tmp_path / "shared" / "audits"
    audits.mkdir(parents=True)
    make(directory=audits)
    assert "can replace runs" not in capfd.readouterr().err
    (tmp_path / "shared").chmod(0o777)
    make(directory=audits)
    printed = capfd.readouterr().err
    assert "other users can replace runs in this directory" in printed
    assert f"{tmp_path}/shared can be written by other users" in printed


def test_runs_of_one_second_get_numbers(make: Making) -> None:
    names = [make().name for _ in range(3)]
    assert names == ["20261122T020000Z-nightly", "20261122T020000Z-nightly-2", "20261122T020000Z-nightly-3"]


def test_runs_of_different_names_are_created_concurrently(tmp_path: Path, make: Making) -> None:
    made: list[Path] = []

    def nested(folder: Path) -> None:
        thread = Thread(target=lambda: made.append(make("weekly", held=True)))
        thread.start()
        thread.join()
        run_of("nightly")(folder)

    folder, hold = create_run_folder(tmp_path, "nightly", nested, now=NOW)
    with hold:
        assert [path.name for path in (folder, *made)] == ["20261122T020000Z-nightly", "20261122T020000Z-weekly"]
        assert all((path / "run.json").is_file() for path in (folder, *made))


def test_a_name_that_another_process_takes_first_is_not_overwritten(
    make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert make().name == f"{first.name}-2"


def test_a_file_with_the_name_of_the_directory_is_an_unwritable_run(tmp_path: Path) -> None:
    (tmp_path / "audits").write_text("a file")
    with pytest.raises(RunNotWritableError, match=r"audits: cannot be written: .+"):
        create_run_folder(tmp_path / "audits", "nightly", fill, now=NOW)
    assert (tmp_path / "audits").read_text() == "a file"


def test_a_full_disk_while_filling_is_an_unwritable_run_without_leftovers(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunNotWritableError, match="No space left"):
        create_run_folder(tmp_path, "nightly", full, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_same_name_in_the_same_directory_is_refused_while_one_is_written(
    tmp_path: Path, make: Making
) -> None:
    first = make(held=True)
    with pytest.raises(RunFolderError, match=rf'an audit named "nightly" is running, in {first}; wait for it'):
        make()
    assert list(tmp_path.iterdir()) == [first]


def test_a_run_of_the_same_name_is_refused_while_the_fleet_of_another_is_read(tmp_path: Path, make: Making) -> None:
    said: list[str] = []

    def read(folder: Path) -> None:
        with pytest.raises(RunFolderError) as refused:
            make()
        said.append(str(refused.value))
        fill(folder)

    create_run_folder(tmp_path, "nightly", read, now=NOW)[1].release()
    assert len(said) == 1
    assert 'an audit named "nightly" is running, reading its fleet' in said[0]


@pytest.mark.parametrize("other", ["night", "nightly-2", "all-nightly", "nightly-nightly"])
@pytest.mark.parametrize("order", [1, -1])
def test_similar_names_do_not_block_each_other(make: Making, other: str, order: int) -> None:
    held = [make(name, held=True) for name in ("nightly", other)[::order]]
    assert all(map(is_locked, held))


def test_directories_do_not_block_each_other(tmp_path: Path, make: Making) -> None:
    held = [make(directory=tmp_path / place, held=True) for place in ("one", "two")]
    assert all(map(is_locked, held))


def test_an_unfinished_run_blocks_no_other_once_its_process_has_exited(make: Making) -> None:
    assert [make().name[-2:], make().name[-2:]] == ["ly", "-2"]


def test_a_run_that_is_being_renamed_is_not_overlooked(
    tmp_path: Path, make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One looks who is in while the folder of another gets its name: it must not be missed under both.
    looking, named_by_now = Event(), Event()
    said: list[object] = []

    def slow(folder: Path) -> bool:
        looking.set()
        named_by_now.wait(0.3)
        return is_locked(folder)

    def second() -> None:
        try:
            said.append(make())
        except RunFolderError as error:
            said.append(str(error))

    def read(folder: Path) -> None:
        run_of("nightly")(folder)
        monkeypatch.setattr(room, "is_locked", slow)
        late.start()
        looking.wait(5)

    late = Thread(target=second)
    folder, hold = create_run_folder(tmp_path, "nightly", read, now=NOW)
    named_by_now.set()
    late.join()
    hold.release()
    assert "is running" in str(said[0])
    assert list(tmp_path.iterdir()) == [folder]


HOLDER = """
import sys, time
from pathlib import Path
from auditor.runs.locking import RunLock, create_run_folder
def stay(folder):
    print("held", flush=True)
    time.sleep(60)
if sys.argv[2] == "hold":
    with RunLock(Path(sys.argv[1])) as lock:
        stay(lock)
else:
    create_run_folder(Path(sys.argv[1]), "nightly", stay, now=1795312800)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Another process that holds the folder, or makes a run in it."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), what], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def test_a_second_process_is_refused_until_the_first_exits(
    tmp_path: Path, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = holder("hold")
    with pytest.raises(RunFolderError, match="another process is writing this run"):
        RunLock(tmp_path)
    kill(process)
    with RunLock(tmp_path):
        assert is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_removed_and_those_of_running_ones_are_not(
    tmp_path: Path, make: Making, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = holder("make")
    (begun,) = tmp_path.iterdir()
    remove_stale_folders(tmp_path)
    make("weekly")
    assert begun.is_dir()
    kill(process)
    (tmp_path / ".pruned-20261122T020000Z-nightly-00000000").mkdir()
    make("nightly")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20261122T020000Z-nightly", "20261122T020000Z-weekly"]


def test_a_check_by_another_process_does_not_prevent_the_lock(tmp_path: Path) -> None:
    looked, descriptor = Event(), os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)

    def let_go() -> None:
        looked.wait(5)
        os.close(descriptor)

    thread = Thread(target=let_go)
    thread.start()
    looked.set()
    with RunLock(tmp_path):
        thread.join()
        assert is_locked(tmp_path)


def test_a_lock_is_released_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), RunLock(tmp_path):
        raise ValueError("a bug")
    assert not is_locked(tmp_path)
    with RunLock(tmp_path), pytest.raises(RunFolderError):
        RunLock(tmp_path)
    assert not is_locked(tmp_path)


def test_a_missing_folder_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="gone"):
        RunLock(tmp_path / "gone")
    shutil.rmtree(tmp_path)
    assert not is_locked(tmp_path)


def test_who_locks_a_folder_itself_stops_no_one(tmp_path: Path, make: Making) -> None:
    # As `flock -n audits auditor run …` does, and as anyone can who may read the folder.
    folder = make()
    descriptors = [os.open(path, os.O_RDONLY) for path in (tmp_path, folder)]
    for descriptor in descriptors:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    make("weekly")
    with RunLock(folder):
        assert is_locked(folder)
    assert prune_runs(tmp_path, keep=1).failed == ()
    for descriptor in descriptors:
        os.close(descriptor)


def test_only_the_owner_can_open_a_lock(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "run").mkdir()
        with directory_lock(tmp_path), RunLock(tmp_path / "run"):
            modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / ".lock", tmp_path / "run" / ".lock")}
    finally:
        os.umask(before)
    assert modes == {0o600}
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "work", [lambda path: directory_lock(path, 0.3).release(), lambda path: prune_runs(path, keep=1)]
)
def test_a_wait_ends_and_names_the_holder(
    tmp_path: Path, work: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.runs.retention.directory_lock", lambda path: directory_lock(path, 0.3))
    with directory_lock(tmp_path), pytest.raises(RunFolderError) as refused:
        work(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: another process is adding or removing runs here")
    assert f"(process {os.getpid()}, " in str(refused.value)


def test_a_wait_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(room, "_REPORT_AFTER", 0.0)
    with directory_lock(tmp_path), pytest.raises(RunFolderError):
        directory_lock(tmp_path, 0.1)
    printed = "".join(capfd.readouterr())  # an earlier test may have sent logs to either
    assert printed.count("waiting for another process") == 1


def test_a_lock_that_is_released_meanwhile_is_taken(tmp_path: Path) -> None:
    held, order = directory_lock(tmp_path), list[str]()

    def wait() -> None:
        with directory_lock(tmp_path, 5.0):
            order.append("taken")
            assert (tmp_path / ".lock").exists()

    waiting = Thread(target=wait)
    waiting.start()
    order.append("released")
    held.release()
    waiting.join(5)
    assert order == ["released", "taken"]
    assert not (tmp_path / ".lock").exists()


def test_a_lock_file_with_a_second_name_can_be_locked(tmp_path: Path) -> None:
    # A killed process left it, and a backup of hard links gave it the name.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch(0o600)
    (tmp_path / "backup").hardlink_to(tmp_path / "run" / ".lock")
    with RunLock(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    {"link": lambda path: path.symlink_to(precious), "pipe": os.mkfifo, "folder": Path.mkdir}[kind](tmp_path / ".lock")
    with pytest.raises(RunNotWritableError, match="cannot be locked"):
        directory_lock(tmp_path)
    assert precious.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="a second user needs root")
def test_a_folder_of_another_user_does_not_block_an_audit_of_its_name(tmp_path: Path, make: Making) -> None:
    theirs = make(held=True)
    os.chown(theirs, 54_321, 54_321)
    assert is_locked(theirs)
    assert make().name == f"{theirs.name}-2"


def test_a_running_audit_is_found_where_every_folder_looks_writable_by_others(tmp_path: Path, make: Making) -> None:
    # As on file systems without modes: vfat, CIFS, Windows drives in WSL.
    held = make(held=True)
    held.chmod(0o777)
    with pytest.raises(RunFolderError, match=f"is running, in {held}"):
        make()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / held.name).symlink_to(held)
    make(directory=tmp_path / "other")


def test_a_run_whose_clock_was_wrong_gets_the_name_of_its_time(tmp_path: Path) -> None:
    folder, lock = create_run_folder(tmp_path, "nightly", run_of("nightly"), now=10.0)
    manifest = replace(read_manifest(folder), started_at="2026-11-22T02:00:00.900Z")
    with lock:
        assert room.rename_corrected(folder, manifest) == folder  # no offset was agreed
        renamed = room.rename_corrected(folder, replace(manifest, clock_offset=1_795_312_790.0))
        assert (folder.name, renamed.name) == ("19700101T000010Z-nightly", "20261122T020000Z-nightly")
        assert is_locked(renamed)
        assert room.rename_corrected(renamed, replace(manifest, clock_offset=1.0)) == renamed
    assert [path.name for path in tmp_path.iterdir()] == [renamed.name]
    assert not is_locked(renamed)
