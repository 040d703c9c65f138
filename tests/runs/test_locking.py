import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from auditor.errors import FleetError, RunFolderError, RunNotWritableError
from auditor.runs import locking as room
from auditor.runs.locking import Hold, is_held, new_run_folder, sweep
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
    holds: list[Hold] = []

    def new(name: str = "nightly", *, directory: Path = tmp_path, held: bool = False) -> Path:
        folder, hold = new_run_folder(directory, name, run_of(name), now=NOW)
        holds.append(hold)
        if not held:
            hold.release()
        return folder

    yield new
    for hold in holds:
        hold.release()


def test_a_run_folder_is_named_by_its_time_and_holds_its_live_files(tmp_path: Path) -> None:
    folder, hold = new_run_folder(tmp_path / "audits" / "deep", "nightly", fill, now=NOW)
    with hold:
        assert folder == tmp_path / "audits" / "deep" / "20261122T020000Z-nightly"
        assert sorted(path.name for path in folder.iterdir()) == ["devices.jsonl", "failures.jsonl", "run.json"]
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_no_reader_sees_a_folder_before_it_is_filled_and_it_is_held_from_then_on(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def look(folder: Path) -> None:
        seen.extend((path.name, is_held(path)) for path in tmp_path.iterdir())
        fill(folder)

    folder, hold = new_run_folder(tmp_path, "nightly", look, now=NOW)
    ((name, held),) = seen
    assert name.startswith(".new-")
    assert held
    assert is_held(folder)
    hold.release()
    assert not is_held(folder)


@pytest.mark.parametrize("error", [FleetError("bad rows"), KeyboardInterrupt(), ValueError("a bug")])
def test_nothing_is_left_when_filling_fails(tmp_path: Path, error: BaseException) -> None:
    filled: list[Path] = []

    def broken(folder: Path) -> None:
        fill(folder)
        filled.append(folder)
        raise error

    with pytest.raises(type(error)):
        new_run_folder(tmp_path, "nightly", broken, now=NOW)
    assert len(filled) == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_second_get_numbers(make: Making) -> None:
    names = [make().name for _ in range(3)]
    assert names == ["20261122T020000Z-nightly", "20261122T020000Z-nightly-2", "20261122T020000Z-nightly-3"]


def test_runs_of_other_names_are_made_side_by_side(tmp_path: Path, make: Making) -> None:
    made: list[Path] = []

    def nested(folder: Path) -> None:
        thread = Thread(target=lambda: made.append(make("weekly", held=True)))
        thread.start()
        thread.join()
        run_of("nightly")(folder)

    folder, hold = new_run_folder(tmp_path, "nightly", nested, now=NOW)
    with hold:
        assert [path.name for path in (folder, *made)] == ["20261122T020000Z-nightly", "20261122T020000Z-weekly"]
        assert all((path / "run.json").is_file() for path in (folder, *made))


def test_a_name_that_is_taken_in_the_last_moment_is_not_taken_over(
    make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert make().name == f"{first.name}-2"


def test_a_file_in_the_way_is_an_unwritable_run(tmp_path: Path) -> None:
    (tmp_path / "audits").write_text("a file")
    with pytest.raises(RunNotWritableError, match=r"audits cannot be written: .+"):
        new_run_folder(tmp_path / "audits", "nightly", fill, now=NOW)
    assert (tmp_path / "audits").read_text() == "a file"


def test_a_full_disk_while_filling_is_an_unwritable_run_without_leftovers(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunNotWritableError, match="No space left"):
        new_run_folder(tmp_path, "nightly", full, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_same_name_in_the_same_directory_is_refused_while_one_is_written(
    tmp_path: Path, make: Making
) -> None:
    first = make(held=True)
    with pytest.raises(RunFolderError, match=rf'an audit named "nightly" is under way, in {first}; wait for it'):
        make()
    assert list(tmp_path.iterdir()) == [first]


def test_a_run_of_the_same_name_is_refused_while_the_fleet_of_another_is_read(tmp_path: Path, make: Making) -> None:
    said: list[str] = []

    def read(folder: Path) -> None:
        with pytest.raises(RunFolderError) as refused:
            make()
        said.append(str(refused.value))
        fill(folder)

    new_run_folder(tmp_path, "nightly", read, now=NOW)[1].release()
    assert len(said) == 1
    assert 'an audit named "nightly" is under way, its fleet is being read' in said[0]


@pytest.mark.parametrize("other", ["night", "nightly-2", "all-nightly", "nightly-nightly"])
@pytest.mark.parametrize("order", [1, -1])
def test_other_names_are_not_in_the_way_even_if_one_is_a_part_of_the_other(
    make: Making, other: str, order: int
) -> None:
    held = [make(name, held=True) for name in ("nightly", other)[::order]]
    assert all(map(is_held, held))


def test_another_directory_is_not_in_the_way(tmp_path: Path, make: Making) -> None:
    held = [make(directory=tmp_path / place, held=True) for place in ("one", "two")]
    assert all(map(is_held, held))


def test_a_run_that_was_not_ended_is_in_nobody_s_way_once_its_process_is_gone(make: Making) -> None:
    assert [make().name[-2:], make().name[-2:]] == ["ly", "-2"]


def test_a_run_that_gets_its_name_in_this_moment_is_not_overlooked(
    tmp_path: Path, make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One looks who is in while the folder of another gets its name: it must not be missed under both.
    looking, named_by_now = Event(), Event()
    said: list[object] = []

    def slow(folder: Path) -> bool:
        looking.set()
        named_by_now.wait(0.3)
        return is_held(folder)

    def second() -> None:
        try:
            said.append(make())
        except RunFolderError as error:
            said.append(str(error))

    def read(folder: Path) -> None:
        run_of("nightly")(folder)
        monkeypatch.setattr(room, "is_held", slow)
        late.start()
        looking.wait(5)

    late = Thread(target=second)
    folder, hold = new_run_folder(tmp_path, "nightly", read, now=NOW)
    named_by_now.set()
    late.join()
    hold.release()
    assert "is under way" in str(said[0])
    assert list(tmp_path.iterdir()) == [folder]


HOLDER = """
import sys, time
from pathlib import Path
from auditor.audit.folder import Hold, new_run_folder
def stay(folder):
    print("held", flush=True)
    time.sleep(60)
if sys.argv[2] == "hold":
    with Hold(Path(sys.argv[1])) as hold:
        stay(hold)
else:
    new_run_folder(Path(sys.argv[1]), "nightly", stay, now=1795312800)
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


def test_a_second_process_is_refused_until_the_holder_dies(
    tmp_path: Path, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = holder("hold")
    with pytest.raises(RunFolderError, match="another process is writing this run"):
        Hold(tmp_path)
    kill(process)
    with Hold(tmp_path):
        assert is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_makes_is_not(
    tmp_path: Path, make: Making, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = holder("make")
    (begun,) = tmp_path.iterdir()
    sweep(tmp_path)
    make("weekly")
    assert begun.is_dir()
    kill(process)
    (tmp_path / ".pruned-20261122T020000Z-nightly-00000000").mkdir()
    make("nightly")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20261122T020000Z-nightly", "20261122T020000Z-weekly"]


def test_a_look_from_another_process_does_not_cost_the_hold(tmp_path: Path) -> None:
    looked, descriptor = Event(), os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)

    def let_go() -> None:
        looked.wait(5)
        os.close(descriptor)

    thread = Thread(target=let_go)
    thread.start()
    looked.set()
    with Hold(tmp_path):
        thread.join()
        assert is_held(tmp_path)


def test_a_folder_is_free_again_after_the_block_and_after_an_error_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), Hold(tmp_path):
        raise ValueError("a bug")
    assert not is_held(tmp_path)
    with Hold(tmp_path), pytest.raises(RunFolderError):
        Hold(tmp_path)
    assert not is_held(tmp_path)


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="gone"):
        Hold(tmp_path / "gone")
    shutil.rmtree(tmp_path)
    assert not is_held(tmp_path)
