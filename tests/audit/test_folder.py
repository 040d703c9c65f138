import errno
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from auditor.audit.folder import held, new_run_folder
from auditor.errors import FleetError, RunFolderError, RunNotWritableError

NOW = 1_795_312_800.9


def fill(folder: Path) -> None:
    (folder / "run.json").write_text("{}")


def test_a_run_folder_is_named_by_its_time_and_holds_its_live_files(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "audits" / "deep", "nightly", fill, now=NOW)
    assert folder == tmp_path / "audits" / "deep" / "20261122T020000Z-nightly"
    assert sorted(path.name for path in folder.iterdir()) == ["devices.jsonl", "failures.jsonl", "run.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_no_reader_sees_a_folder_before_it_is_filled(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look(folder: Path) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])
        fill(folder)

    new_run_folder(tmp_path, "nightly", look, now=NOW)
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(".new-")


@pytest.mark.parametrize("error", [FleetError("bad rows"), KeyboardInterrupt(), ValueError("a bug")])
def test_nothing_is_left_when_filling_fails(tmp_path: Path, error: BaseException) -> None:
    def broken(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        new_run_folder(tmp_path, "nightly", broken, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_second_get_numbers(tmp_path: Path) -> None:
    names = [new_run_folder(tmp_path, "nightly", fill, now=NOW).name for _ in range(3)]
    assert names == ["20261122T020000Z-nightly", "20261122T020000Z-nightly-2", "20261122T020000Z-nightly-3"]


def test_runs_that_are_made_side_by_side_do_not_touch_each_other(tmp_path: Path) -> None:
    made: list[Path] = []

    def nested(folder: Path) -> None:
        thread = Thread(target=lambda: made.append(new_run_folder(tmp_path, "nightly", fill, now=NOW)))
        thread.start()
        thread.join()
        fill(folder)

    made.append(new_run_folder(tmp_path, "nightly", nested, now=NOW))
    assert len(set(made)) == 2
    assert all((folder / "run.json").is_file() for folder in made)


def test_a_name_that_is_taken_in_the_last_moment_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_run_folder(tmp_path, "nightly", fill, now=NOW)
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert new_run_folder(tmp_path, "nightly", fill, now=NOW).name == f"{first.name}-2"


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


HOLDER = """
import sys, time
from pathlib import Path
from auditor.audit.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_holder_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunFolderError, match="another process is writing this run"), held(tmp_path):
                pytest.fail("held twice")
        finally:
            holder.send_signal(signal.SIGKILL)
    with held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_free_again_after_the_block_and_after_an_error_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), held(tmp_path):
        raise ValueError("a bug")
    with held(tmp_path), pytest.raises(RunFolderError), held(tmp_path):
        pytest.fail("held twice")
    with held(tmp_path):
        pass


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="gone"), held(tmp_path / "gone"):
        pytest.fail("held")
