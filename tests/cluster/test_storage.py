"""The directory of a run, and the check of a storage."""

from pathlib import Path

import pytest

from auditor.cluster.storage import RunDirectory, check_storage, join_address, open_run
from auditor.errors import InvalidObjectError, ObjectMissingError, ObjectStoreError
from auditor.storage.object_store import MemoryStore, StoredObject


def test_a_directory_that_is_away_is_an_error_and_not_created(tmp_path: Path) -> None:
    storage = open_run(str(tmp_path / "runs"), create=True)
    storage.put("a/b", b"x")
    with pytest.raises(ObjectMissingError):
        storage.get("a/c")
    (tmp_path / "runs").rename(tmp_path / "away")
    for action in (
        lambda: storage.put("a/b", b"y"),
        lambda: storage.put_file("a/b", tmp_path / "away" / "a" / "b"),
        lambda: storage.get("a/b"),
        lambda: storage.list("a"),
    ):
        with pytest.raises(ObjectStoreError, match="check that it is mounted") as error:
            action()
        assert not isinstance(error.value, ObjectMissingError)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "away").rename(tmp_path / "runs")
    assert storage.get("a/b") == b"x"
    with pytest.raises(ObjectStoreError, match="is no directory"):
        open_run(join_address(f"{tmp_path}/", "other"))


def test_a_run_is_not_created_in_a_storage_that_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreError, match="shared: is no directory now; create it, or mount it"):
        open_run(str(tmp_path / "shared" / "run"), create=True)
    assert list(tmp_path.iterdir()) == []


def test_links_are_neither_followed_nor_is_anything_else_listed(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / ".hidden").write_text("x")
    storage = RunDirectory(root)
    storage.put("a/b", b"x")
    assert {each.key for each in storage.list()} <= {"a/b", "file"}
    for key in ("link/secret", "file", "../outside/secret"):
        with pytest.raises(ObjectStoreError):
            storage.get(key)
    check_storage(storage)


@pytest.mark.parametrize("link", ["done", "shards/0000-eu/markers", "shards/0000-eu/attempts"])
def test_no_method_follows_a_link_that_leads_out_of_the_run(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    (root / link).parent.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / link).symlink_to(outside)
    storage = RunDirectory(root)
    for action in (
        lambda: storage.put(f"{link}/new", b"x"),
        lambda: storage.put(f"{link}/deeper/new", b"x"),
        lambda: storage.put_file(f"{link}/new", outside / "secret"),
        lambda: storage.get(f"{link}/secret"),
        lambda: storage.get_file(f"{link}/secret", tmp_path / "read"),
        lambda: storage.list(link),
    ):
        with pytest.raises(InvalidObjectError, match="leads out of the run"):
            action()
    assert [each.name for each in outside.iterdir()] == ["secret"]
    assert not any("secret" in each.key for each in storage.list())


class ForgetfulStorage(MemoryStore):
    def list(self, folder: str = "") -> list[StoredObject]:
        return []


class StaleStorage(MemoryStore):
    def put(self, key: str, content: bytes) -> None:
        if key not in {each.key for each in self.list()}:
            super().put(key, content)


@pytest.mark.parametrize(("kind", "match"), [(ForgetfulStorage, "does not list"), (StaleStorage, "other content")])
def test_a_storage_that_cannot_hold_runs_is_found_out(kind: type[MemoryStore], match: str) -> None:
    with pytest.raises(ObjectStoreError, match=match):
        check_storage(kind())


def test_a_directory_that_goes_away_between_check_and_write_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_run(str(tmp_path / "runs"), create=True)
    (tmp_path / "runs").rmdir()
    monkeypatch.setattr(RunDirectory, "_require_mounted", lambda _: None)
    with pytest.raises(ObjectStoreError, match="cannot be written"):
        storage.put("a/b/c", b"x")
    assert list(tmp_path.iterdir()) == []
