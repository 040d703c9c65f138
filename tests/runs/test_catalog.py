from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from auditor.errors import RunFolderError
from auditor.runs.folder import RunCatalog, StoredRun
from auditor.runs.manifest import MANIFEST
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
    assert folder_name(catalog.latest("nightly", complete=True)) == "1"
    assert catalog.latest("monthly") is None


def test_the_previous_run_has_the_same_name_and_ended(directory: Path) -> None:
    catalog = RunCatalog(directory)
    previous = {run.folder.name: folder_name(catalog.previous(*run)) for run in catalog.runs}
    assert previous == {"4": "3", "3": "1", "2": None, "1": None}


def test_the_baseline_prefers_a_run_without_pending_devices(directory: Path) -> None:
    assert folder_name(RunCatalog(directory).baseline("nightly")) == "1"
    edit_manifest(directory / "1", lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    assert folder_name(RunCatalog(directory).baseline("nightly")) == "3"
    assert RunCatalog(directory).baseline("monthly") is None


def test_a_missing_directory_is_an_error_unless_it_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read"):
        RunCatalog(tmp_path / "missing")
    assert RunCatalog(tmp_path / "missing", missing_ok=True).runs == []
