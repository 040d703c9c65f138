"""`auditor prune`: old runs are deleted; the newest, the newest successful, running ones and other folders are kept."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from auditor.errors import RunFolderError, UsageError
from auditor.runs.folder import ARCHIVE, CHANGES
from auditor.runs.locking import RunLock, create_run_folder, directory_lock
from auditor.runs.manifest import State
from auditor.runs.retention import prune_runs
from auditor.runs.selection_info import ChangesInfo
from auditor.text.formatting import format_utc
from tests.cli.conftest import Auditor
from tests.other_user import OTHER_USER, as_other_user, let_others_enter, needs_root
from tests.runs.run_folders import edit_manifest, named, running


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "audits"
    directory.mkdir()
    return directory


def a_run(directory: Path, day: int, state: State = "complete", *, name: str = "nightly") -> Path:
    folder = directory / f"202611{day:02}T020000Z-{name}"
    running(folder, [named(0)], [], name=name)
    edit_manifest(folder, lambda manifest: replace(manifest, state=state, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_runs_of_each_name_are_kept(auditor: Auditor, runs: Path) -> None:
    nightly = [a_run(runs, day) for day in range(1, 6)]
    weekly = [a_run(runs, day, name="weekly") for day in range(1, 3)]
    done = auditor("prune", runs, "--keep", 2)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(map(str, nightly[:3]))
    assert done.stderr == "3 runs deleted, 4 kept\n"
    assert left(runs) == sorted(path.name for path in (*nightly[3:], *weekly))


def test_a_dry_run_prints_old_runs_and_deletes_nothing(auditor: Auditor, runs: Path) -> None:
    for day in range(1, 4):
        a_run(runs, day)
    (runs / ".pruned-20261101T020000Z-nightly-00000000").mkdir()
    before = left(runs)
    done = auditor("prune", runs, "--keep", 1, "--dry-run")
    assert (done.returncode, len(done.stdout.split())) == (0, 2)
    assert done.stderr == "2 runs would be deleted, 1 kept\n"
    assert left(runs) == before


def test_the_newest_complete_run_is_kept_however_old_it_is(runs: Path) -> None:
    folders = [
        a_run(runs, 1),
        a_run(runs, 2),
        a_run(runs, 3, "partial"),
        a_run(runs, 4, "aborted"),
        a_run(runs, 5, "running"),
    ]
    pruned = prune_runs(runs, keep=1)
    assert set(pruned.removed) == {folders[0], folders[2], folders[3]}
    assert left(runs) == [folders[1].name, folders[4].name]
    assert pruned.remaining == 2


def test_age_is_the_start_of_a_run_not_its_folder_name(runs: Path) -> None:
    old, new = a_run(runs, 1), a_run(runs, 2)
    edit_manifest(old, lambda manifest: replace(manifest, started_at="2026-12-01T02:00:00.000Z"))
    assert prune_runs(runs, keep=1).removed == (new,)


def aged(directory: Path, days: float, state: State = "complete", *, name: str = "nightly") -> Path:
    """Return a run that started so many days ago."""
    started = format_utc(time.time() - days * 86_400)
    folder = directory / f"{started[:19].replace('-', '').replace(':', '')}Z-{name}"
    running(folder, [named(0)], [], name=name)
    edit_manifest(folder, lambda manifest: replace(manifest, state=state, started_at=started))
    return folder


def test_runs_younger_than_a_number_of_days_are_kept(auditor: Auditor, runs: Path) -> None:
    nightly = [aged(runs, days) for days in (0.1, 1, 6.9, 7.1, 8, 400)]
    weekly = [aged(runs, days, name="weekly") for days in (20, 30)]
    done = auditor("prune", runs, "--keep-days", 7)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(map(str, (*nightly[3:], weekly[1])))  # weekly[0]: its newest success
    assert done.stderr == "4 runs deleted, 4 kept\n"
    assert left(runs) == sorted(path.name for path in (*nightly[:3], weekly[0]))


def test_a_run_stays_if_its_rank_or_its_age_keeps_it(runs: Path) -> None:
    folders = [aged(runs, days) for days in (1, 2, 3, 10, 11)]
    assert set(prune_runs(runs, keep=1, keep_days=7, dry_run=True).removed) == set(folders[3:])
    assert set(prune_runs(runs, keep=4, keep_days=2, dry_run=True).removed) == {folders[4]}
    assert prune_runs(runs, keep=5, keep_days=1, dry_run=True).removed == ()
    assert prune_runs(runs, keep_days=10**400, dry_run=True).removed == ()


def test_age_in_days_is_the_start_of_a_run_and_an_impossible_one_has_none(runs: Path) -> None:
    aged(runs, 1)
    renamed = aged(runs, 40).rename(runs / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-nightly")
    young = aged(runs, 3).rename(runs / "20200101T000000Z-nightly")
    future = aged(runs, 50).rename(runs / "99991231T235959Z-nightly")
    pruned = prune_runs(runs, keep_days=7)
    assert pruned.removed == (renamed,)
    assert young.is_dir()
    assert [str(future) in sentence for sentence in pruned.skipped] == [True]


@pytest.fixture
def held(runs: Path) -> Iterator[Path]:
    folder = a_run(runs, 1, "running")
    with RunLock(folder):
        yield folder


def test_a_run_in_progress_is_kept_and_reported(runs: Path, held: Path) -> None:
    killed, newest = a_run(runs, 2, "running"), a_run(runs, 3)
    for dry_run in (True, False):
        pruned = prune_runs(runs, keep=1, dry_run=dry_run)
        assert (pruned.removed, pruned.remaining) == ((killed,), 2)
        assert [str(held) in sentence for sentence in pruned.skipped] == [True]
    assert left(runs) == [held.name, newest.name]


def test_other_folders_and_links_to_runs_are_not_touched(runs: Path, tmp_path: Path) -> None:
    elsewhere = a_run(tmp_path / "elsewhere", 1)
    (runs / "20261101T020000Z-linked").symlink_to(elsewhere)
    (runs / "notes").mkdir()
    (runs / "notes" / "text").write_text("mine")
    (runs / "20261101T020000Z-nightly.txt").write_text("a file")
    (runs / ".hidden").mkdir()
    old, new = a_run(runs, 2), a_run(runs, 3)
    before = left(runs)
    assert prune_runs(runs, keep=1).removed == (old,)
    assert left(runs) == [name for name in before if name != old.name]
    assert (elsewhere / "run.json").is_file()
    assert new.is_dir()


def test_an_unreadable_run_is_kept_and_reported(auditor: Auditor, runs: Path) -> None:
    a_run(runs, 1)
    a_run(runs, 2)
    broken = a_run(runs, 3)
    (broken / "run.json").write_text("{")
    done = auditor("prune", runs, "--keep", 1)
    assert done.returncode == 0
    assert f"skipped: {broken}/run.json: is not a manifest" in done.stderr
    assert len(left(runs)) == 2
    assert broken.is_dir()


@needs_root
def test_a_run_that_cannot_be_locked_does_not_keep_the_others(runs: Path) -> None:
    own_read_only, theirs, last_old, _newest = (a_run(runs, day) for day in range(1, 5))
    for path in (runs, own_read_only, last_old):
        for each in (path, *path.iterdir()):
            os.chown(each, OTHER_USER, OTHER_USER)
    own_read_only.chmod(0o555)
    os.chown(theirs, 0, 0)
    let_others_enter(runs)

    def prune() -> tuple[tuple[Path, ...], list[str], int]:
        pruned = prune_runs(runs, keep=1)
        return pruned.removed, sorted(pruned.failed), pruned.remaining

    reasons = [f"{path}: cannot be locked: Permission denied" for path in (own_read_only, theirs)]
    assert as_other_user(prune) == ((last_old,), reasons, 3)


def test_leftovers_of_killed_processes_are_removed(runs: Path) -> None:
    a_run(runs, 1)
    for name in (".pruned-20261101T020000Z-nightly-00000000", ".new-20261101T020000Z-nightly-00000000"):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(json.dumps({}))
    prune_runs(runs, keep=1)
    assert left(runs) == ["20261101T020000Z-nightly"]


def test_a_missing_directory_and_a_number_below_1_are_refused(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: cannot be read"):
        prune_runs(tmp_path / "nowhere", keep=1)
    a_run(runs, 1)
    with pytest.raises(UsageError, match="from 1 up"):
        prune_runs(runs, keep=0)
    with pytest.raises(UsageError, match="keep-days 0: give a number of days from 1 up"):
        prune_runs(runs, keep_days=0)
    with pytest.raises(UsageError, match="nothing says which runs to keep"):
        prune_runs(runs)
    assert len(left(runs)) == 1


def test_an_audit_may_start_while_an_old_run_of_its_name_is_deleted(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = a_run(runs, 1), a_run(runs, 2)
    begun: list[Path] = []
    delete = shutil.rmtree

    def slow(path: Path) -> None:
        folder, hold = create_run_folder(runs, "nightly", lambda fresh: (fresh / "run.json").touch(), now=1_795_312_800)
        hold.release()
        begun.append(folder)
        delete(path)

    monkeypatch.setattr("auditor.runs.retention.shutil.rmtree", slow)
    assert prune_runs(runs, keep=1).removed == (old,)
    assert [folder.is_dir() for folder in begun] == [True]
    assert len(left(runs)) == 2


def test_a_new_run_folder_without_a_lock_is_not_removed(runs: Path) -> None:
    a_run(runs, 1)
    pruning = Thread(target=prune_runs, args=(runs,), kwargs={"keep": 1})
    fresh = runs / ".new-20261101T020000Z-nightly-00000000"
    with directory_lock(runs):
        fresh.mkdir()
        pruning.start()
        pruning.join(0.2)
        hold = RunLock(fresh)
    pruning.join(5)
    assert not pruning.is_alive()
    assert fresh.is_dir()
    hold.release()


def of_other_user(folder: Path) -> Path:
    """Give a run to another user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
    return folder


def with_changes(folder: Path) -> Path:
    """Let a run say that it recorded changes."""
    (folder / CHANGES).write_bytes(b"recorded")
    edit_manifest(folder, lambda manifest: replace(manifest, changes=ChangesInfo("20261031T020000Z-nightly", {})))
    return folder


@needs_root
def test_planted_runs_do_not_push_out_own_ones(auditor: Auditor, runs: Path) -> None:
    own = [a_run(runs, day) for day in (1, 2)]
    planted = [of_other_user(a_run(runs, day)) for day in (3, 4, 5)]
    runs.chmod(0o1777)
    done = auditor("prune", runs, "--keep", 2)
    assert f"skipped: {planted[0]}: belongs to another user (uid {OTHER_USER})" in done.stderr
    assert left(runs) == sorted(path.name for path in own + planted)
    runs.chmod(0o755)  # only its owner can have put them here
    assert set(prune_runs(runs, keep=2).removed) == {*own, planted[0]}


@needs_root
@pytest.mark.parametrize("kind", ["folder of another user", "link", "link in the folder of the run"])
def test_changes_are_kept_in_own_folders_only(runs: Path, tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / CHANGES).write_text("mine")
    old, _newest = with_changes(a_run(runs, 1)), a_run(runs, 2)
    runs.chmod(0o1777)
    archive = runs / ARCHIVE
    match kind:
        case "folder of another user":
            (archive / old.name).mkdir(parents=True)
            (archive / old.name / CHANGES).symlink_to(precious / CHANGES)
            of_other_user(archive)
        case "link":
            archive.symlink_to(precious)
        case _:
            (archive / old.name).mkdir(parents=True)
            (archive / old.name / CHANGES).symlink_to(precious / CHANGES)
    result = prune_runs(runs, keep=1)
    assert (precious / CHANGES).read_text() == "mine"
    assert left(precious) == [CHANGES]
    if kind == "link in the folder of the run":  # the own folder's link is replaced
        assert (result.removed, (archive / old.name / CHANGES).read_bytes()) == ((old,), b"recorded")
    else:
        assert (result.removed, old.is_dir(), str(archive) in result.failed[0]) == ((), True, True)


@needs_root
def test_a_recorded_change_that_is_a_link_is_not_copied(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    old, _newest = with_changes(a_run(runs, 1)), a_run(runs, 2)
    (old / CHANGES).unlink()
    (old / CHANGES).symlink_to(tmp_path / "secret")
    result = prune_runs(runs, keep=1)
    assert result.removed == ()
    assert str(old) in (*result.skipped, *result.failed)[0]
    assert not (runs / ARCHIVE / old.name / CHANGES).exists()


@needs_root
def test_leftovers_of_other_users_are_not_removed(runs: Path) -> None:
    a_run(runs, 1)
    leftover = runs / ".pruned-20261101T020000Z-nightly-0123abcd"
    leftover.mkdir()
    runs.chmod(0o1777)
    of_other_user(leftover)
    prune_runs(runs, keep=1)
    assert leftover.is_dir()
    os.chown(leftover, 0, 0)
    runs.chmod(0o777)  # another user may have given a folder this name
    prune_runs(runs, keep=1)
    assert leftover.is_dir()
    runs.chmod(0o1777)
    prune_runs(runs, keep=1)
    assert not leftover.exists()
