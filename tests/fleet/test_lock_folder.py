"""The folder of a listing belongs to its user: nobody else can redirect, change or read it."""

import os
import stat
from pathlib import Path

import pytest

from auditor.config.loader import parse_settings
from auditor.config.settings import Settings
from auditor.errors import RunNotWritableError
from auditor.fleet.discovery import _prepare_folder, lock_folder

OTHER_USER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a second user needs root")


def settings() -> Settings:
    account = {
        "name": "eu",
        "endpoint": "http://127.0.0.1:9",
        "access_key_id": "id",
        "access_key_secret": {"env": "KEY"},
    }
    return parse_settings({"name": "nightly", "account": [account]}, where="a test")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def victim(folder: Path) -> Path:
    path = folder / "home"
    (path / "documents").mkdir(parents=True)
    (path / "documents" / "thesis").write_text("three years")
    (path / ".profile").write_text("umask 022")
    return path


def link(work: Path, home: Path) -> None:
    work.symlink_to(home)


def writable_by_all(work: Path, home: Path) -> None:
    home.rename(work)
    work.chmod(0o777)


def of_another_user(work: Path, home: Path) -> None:
    home.rename(work)
    os.chown(work, OTHER_USER, OTHER_USER)


def file(work: Path, _: Path) -> None:
    work.write_text("a file")


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (link, "is a link"),
        (writable_by_all, "can be written by other users"),
        pytest.param(of_another_user, "belongs to another user", marks=needs_root),
        (file, "is not a folder"),
    ],
)
def test_a_planted_folder_is_refused_and_nothing_in_it_is_removed(tmp_path: Path, plant: object, says: str) -> None:
    home, work = victim(tmp_path), tmp_path / "audits" / ".discovery-nightly"
    work.parent.mkdir()
    assert callable(plant)
    plant(work, home)
    with pytest.raises(RunNotWritableError, match=f"discovery-nightly: {says}.*; remove it"), lock_folder(work):
        _prepare_folder(work, settings(), resume=False)
    kept = work if work.is_dir() else home
    assert sorted(path.name for path in kept.rglob("*")) == [".profile", "documents", "thesis"]


def test_a_link_that_replaces_the_folder_after_the_check_is_not_followed(tmp_path: Path) -> None:
    home, work = victim(tmp_path), tmp_path / "audits" / ".discovery-nightly"
    with lock_folder(work):
        work.rename(tmp_path / "moved")
        link(work, home)
        with pytest.raises(RunNotWritableError, match=r"cannot be emptied: (Not a directory|Too many)"):
            _prepare_folder(work, settings(), resume=False)
    assert sorted(path.name for path in home.rglob("*")) == [".profile", "documents", "thesis"]


def test_links_in_the_folder_are_removed_and_not_followed(tmp_path: Path) -> None:
    home, work = victim(tmp_path), tmp_path / "audits" / ".discovery-nightly"
    with lock_folder(work):
        link(work / "0.jsonl", home)
        (work / "spill").mkdir()
        link(work / "spill" / "home", home)
        _prepare_folder(work, settings(), resume=False)
        assert sorted(path.name for path in work.iterdir()) == [".lock", "discovery.json"]
    assert sorted(path.name for path in home.rglob("*")) == [".profile", "documents", "thesis"]


@pytest.mark.parametrize(("group_readable", "expected"), [(False, 0o700), (True, 0o750)])
def test_what_is_created_is_private(tmp_path: Path, group_readable: bool, expected: int) -> None:  # noqa: FBT001
    work = tmp_path / "audits" / ".discovery-nightly"
    with lock_folder(work, group_readable=group_readable):
        assert (mode(work), mode(work.parent)) == (0o700, expected)
    assert not work.exists()
