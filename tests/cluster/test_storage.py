"""A directory as the storage of runs."""

from pathlib import Path

import pytest

from auditor.cluster.storage import DirectoryStorage, RunStorage, StoredObject, check_storage
from auditor.errors import MissingObjectError, StorageError
from tests.cluster.memory_storage import MemoryStorage


@pytest.fixture(params=["directory", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> RunStorage:
    if request.param == "memory":
        return MemoryStorage()
    (tmp_path / "runs").mkdir()
    return DirectoryStorage(tmp_path / "runs")


def test_objects_are_listed_and_read_as_they_were_put(storage: RunStorage, tmp_path: Path) -> None:
    storage.put("a/b/one.json", b"first")
    storage.put("a/b/one.json", b"second")
    (tmp_path / "file").write_bytes(b"content")
    storage.put_file("a/two", tmp_path / "file")
    assert [(each.key, each.size) for each in storage.objects()] == [("a/b/one.json", 6), ("a/two", 7)]
    assert [each.key for each in storage.objects("a/b/")] == ["a/b/one.json"]
    assert list(storage.objects("c/")) == []
    assert storage.get("a/b/one.json", max_bytes=6) == b"second"
    storage.get_file("a/two", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(StorageError):
        storage.get("a/two", max_bytes=6)
    with pytest.raises(MissingObjectError):
        storage.get("a/three", max_bytes=6)
    check_storage(storage)


def test_a_directory_that_is_away_is_an_error_and_not_created(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path / "runs")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.put("a/b", b"x")
    with pytest.raises(StorageError, match="cannot be read") as error:
        storage.get("a/b", max_bytes=1)
    assert not isinstance(error.value, MissingObjectError)
    with pytest.raises(StorageError, match="cannot be listed"):
        list(storage.objects("a/"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["../x", "a/../b", "/etc/passwd", "a//b", "", ".hidden", "a/ b"])
def test_a_key_is_no_path_to_elsewhere(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="is not a key"):
        DirectoryStorage(tmp_path).get(key, max_bytes=1)


def test_links_are_neither_followed_nor_listed(tmp_path: Path) -> None:
    root, outside = tmp_path / "runs", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    storage = DirectoryStorage(root)
    assert list(storage.objects()) == []
    for key in ("link/secret", "file"):
        with pytest.raises(StorageError):
            storage.get(key, max_bytes=100)
    with pytest.raises(StorageError):
        storage.put("link/new", b"x")
    assert [path.name for path in outside.iterdir()] == ["secret"]


class ForgetfulStorage(MemoryStorage):
    def objects(self, folder: str = "") -> "list[StoredObject]":  # type: ignore[override]
        return []


class StaleStorage(MemoryStorage):
    def get(self, key: str, *, max_bytes: int) -> bytes:
        return b"old"


@pytest.mark.parametrize(("kind", "match"), [(ForgetfulStorage, "does not list"), (StaleStorage, "other content")])
def test_a_storage_that_cannot_hold_runs_is_found_out(kind: type[MemoryStorage], match: str) -> None:
    with pytest.raises(StorageError, match=match):
        check_storage(kind())
