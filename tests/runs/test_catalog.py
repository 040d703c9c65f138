import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from auditor.errors import RunFolderError
from auditor.runs.folder import ARCHIVE, RunCatalog, StoredRun, find_run
from auditor.runs.manifest import MANIFEST, read_manifest
from tests.other_user import OTHER_USER, needs_root
from tests.runs.run_folders import build, edit_manifest, named, ok, running


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Runs of two names, the number of each is the day of its start; 4 is running, 5 has an unreadable manifest."""
    fleet = [named(0), named(1)]
    answers = [ok(device, ("ble", "1")) for device in fleet]
    for number, outcomes in enumerate((answers, answers, answers[:1]), 1):
        build(tmp_path / str(number), fleet, outcomes)
    running(tmp_path / "4", fleet, answers[:1])
    for number in range(1, 5):
        name = "weekly" if number == 2 else "nightly"
        started = f"2026-11-0{number}T00:00:00.000Z"
        edit_manifest(tmp_path / str(number), partial(replace, name=name, started_at=started))
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / MANIFEST).write_text("{")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "1")
    return tmp_path


def folder_name(run: StoredRun | None) -> str | None:
    return None if run is None else run.folder.name


def test_runs_are_listed_newest_first_and_unreadable_ones_are_kept_apart(directory: Path) -> None:
    catalog = RunCatalog(directory)
    assert [run.folder.name for run in catalog.runs] == ["4", "3", "2", "1"]
    assert [run.folder.name for run in catalog.named("nightly")] == ["4", "3", "1"]
    assert [str(error).partition(":")[0] for error in catalog.unreadable] == [str(directory / "5" / MANIFEST)]


def test_the_latest_run_meets_every_condition(directory: Path) -> None:
    catalog = RunCatalog(directory)
    assert folder_name(catalog.latest()) == "4"
    assert folder_name(catalog.latest("weekly")) == "2"
    assert folder_name(catalog.latest("nightly", ended=True)) == "3"
    assert folder_name(catalog.latest("nightly", sealed=True)) == "3"
    assert folder_name(catalog.latest("nightly", successful=True)) == "1"
    assert catalog.latest("monthly") is None


def test_the_previous_run_has_the_same_name_and_ended(directory: Path) -> None:
    catalog = RunCatalog(directory)
    previous = {run.folder.name: folder_name(catalog.previous(*run)) for run in catalog.runs}
    assert previous == {"4": "3", "3": "1", "2": None, "1": None}


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("2026-11-22T02:00:00.000Z", "2026-11-22T02:01:00.000Z", 60),
        ("2026-11-22T02:00:00.000Z", "2026-11-22T02:01:00", 60),
        ("2026-11-22T02:01:00.000Z", "2026-11-22T02:00:00.000Z", None),
        ("yesterday", "2026-11-22T02:00:00.000Z", None),
    ],
)
def test_a_duration_is_known_if_its_times_can_be_read(
    directory: Path, start: str, end: str, seconds: float | None
) -> None:
    edit_manifest(directory / "1", lambda manifest: replace(manifest, started_at=start, finished_at=end))
    (run,) = (run for run in RunCatalog(directory).runs if run.folder.name == "1")
    assert run.seconds == seconds


def test_the_baseline_prefers_a_run_without_pending_devices(directory: Path) -> None:
    assert folder_name(RunCatalog(directory).baseline("nightly")) == "1"
    edit_manifest(directory / "1", lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    assert folder_name(RunCatalog(directory).baseline("nightly")) == "3"
    assert RunCatalog(directory).baseline("monthly") is None


def test_a_missing_directory_is_an_error_unless_it_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        RunCatalog(tmp_path / "missing")
    assert RunCatalog(tmp_path / "missing", missing_ok=True).runs == []


def ended(directory: Path, day: int, *, limit: int | None = None) -> Path:
    """A complete run of a day of November 2026; with a ``limit``, of a part of its fleet."""
    folder = directory / f"202611{day:02}T020000Z-nightly"
    build(folder, [named(0)], [ok(named(0), ("ble", "1"))])
    started_at = f"2026-11-{day:02}T02:00:00.000Z"
    edit_manifest(
        folder, lambda manifest: replace(manifest, started_at=started_at, fleet=replace(manifest.fleet, limit=limit))
    )
    return folder


@pytest.fixture
def week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs from Monday, 2026-11-23, to Saturday, without one on Thursday. It is Saturday noon; a test run came last."""
    for day in (23, 24, 25, 27, 28):
        ended(tmp_path, day)
    limited = ended(tmp_path, 29, limit=1)
    edit_manifest(limited, lambda manifest: replace(manifest, started_at="2026-11-28T11:00:00.000Z"))
    monkeypatch.setattr("auditor.runs.folder.time.time", lambda: 1_795_867_200.0)  # 2026-11-28T12:00:00Z
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "day"),
    [
        ("last", 28), ("last~0", 28), ("last~1", 27), ("last~4", 23), ("today", 28), ("yesterday", 27),
        ("monday", 23), ("Mon", 23), ("thursday", 25), ("friday", 27), ("2026-11-24", 24), ("2026-11-26", 25),
        ("4d", 24), ("12h", 27), ("5d", 23),
    ],
)  # fmt: skip
def test_a_reference_means_a_run_of_the_fleet(week: Path, reference: str, day: int) -> None:
    assert folder_name(RunCatalog(week).refer(reference)) == f"202611{day}T020000Z-nightly"
    assert find_run(week / reference) == week / f"202611{day}T020000Z-nightly"


@pytest.mark.parametrize("reference", ["last~5", "2026-11-22", "saturday", "60d"])
def test_a_reference_to_a_run_that_does_not_exist_is_an_error(week: Path, reference: str) -> None:
    with pytest.raises(RunFolderError, match=f"{week}: has no "):
        find_run(week / reference)


@pytest.mark.parametrize("reference", ["lasts", "last~", "mo", "2026-13-01", "7", "now"])
def test_other_texts_are_no_reference(week: Path, reference: str) -> None:
    with pytest.raises(RunFolderError, match="is no run; give its folder, or last, "):
        RunCatalog(week).refer(reference)
    with pytest.raises(RunFolderError, match="no such run"):
        find_run(week / reference)


def test_a_directory_means_its_newest_successful_run_for_reading(week: Path) -> None:
    assert find_run(week).name == "20261129T020000Z-nightly"
    assert find_run(week, "successful").name == find_run(week, "fleet").name == "20261128T020000Z-nightly"
    edit_manifest(week / "20261128T020000Z-nightly", lambda manifest: replace(manifest, state="partial"))
    assert find_run(week, "successful").name == "20261127T020000Z-nightly"
    assert find_run(week, "fleet").name == "20261128T020000Z-nightly"
    edit_manifest(week / "20261129T020000Z-nightly", lambda manifest: replace(manifest, name="other"))
    assert find_run(week, "successful").name == "20261129T020000Z-nightly", "the newest run decides on the name"


@needs_root
def test_a_run_that_another_user_planted_is_no_newest_and_no_previous_run(directory: Path) -> None:
    planted = directory / "3"
    for path in (planted, *planted.iterdir()):
        os.chown(path, OTHER_USER, OTHER_USER)
    newest = StoredRun(read_manifest(directory / "4"), directory / "4")
    for mode, previous in ((0o755, "3"), (0o775, "3"), (0o1777, "1"), (0o777, "1")):
        directory.chmod(mode)
        catalog = RunCatalog(directory)
        assert folder_name(catalog.previous(*newest)) == previous
        assert folder_name(catalog.latest("nightly", ended=True)) == previous
        skipped = [str(error) for error in catalog.unreadable if str(error).startswith(f"{planted}: ")]
        sentence = (
            f"{planted}: belongs to another user (uid {OTHER_USER}) in a directory that all users can write; "
            "give this folder to read it"
        )
        assert skipped == [sentence] * (previous == "1")
    assert find_run(planted) == planted
    os.chown(planted, 0, 0)  # its manifest is still theirs
    assert folder_name(RunCatalog(directory).previous(*newest)) == "1"
    os.chown(planted, OTHER_USER, OTHER_USER)
    os.chown(directory, OTHER_USER, OTHER_USER)  # whoever owns a directory of runs is trusted by those who read it
    assert folder_name(RunCatalog(directory).previous(*newest)) == "3"


@needs_root
def test_kept_changes_that_another_user_planted_are_not_read(directory: Path) -> None:
    archive = directory / ARCHIVE
    shutil.copytree(directory / "1", archive / "1")
    assert [run.folder.name for run in RunCatalog(directory).archived()] == ["1"]
    os.chown(archive, OTHER_USER, OTHER_USER)
    directory.chmod(0o1777)
    assert RunCatalog(directory).archived() == []
    archive.rename(directory / "elsewhere")
    archive.symlink_to(directory / "elsewhere")
    directory.chmod(0o755)
    assert RunCatalog(directory).archived() == []
