import os
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from auditor.concurrency import TimeLimit
from auditor.errors import InvalidObjectError, ObjectMissingError, ObjectStoreError, SettingsError
from auditor.models import Secret
from auditor.storage import cloud_store
from auditor.storage.object_store import MemoryStore, ObjectStore, OptionValue, StoredObject, check_key, open_store
from tests.storage.s3 import S3, needs_s3, simulated_s3

KEYS: dict[str, OptionValue] = {
    "access_key_id": "AKIDCANARY",
    "secret_access_key": Secret("SECRETCANARY"),
    "session_token": Secret("T0KCANARY"),
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with simulated_s3(tmp_path_factory.mktemp("s3")) as simulated:
        yield simulated


@pytest.fixture(params=["memory", "directory", pytest.param("s3", marks=needs_s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return open_store(str(tmp_path / "lake"))
    s3 = request.getfixturevalue("s3")
    s3.failures = 0.0
    return open_store(f"s3://lake/{tmp_path.name}/x y", {**s3.options, **KEYS})


HOSTILE = ("a/account=ü%20#?+&=x/b", "a/b c/~'\"$`|<>*", "a/%2e%2e/..x", "a/😀/\u202e", "a/b ")


def test_objects_of_any_name_are_stored_listed_read_and_deleted(store: ObjectStore, tmp_path: Path) -> None:
    for number, key in enumerate(HOSTILE):
        store.put(key, b"x" * number)
    store.put("ab/c", b"")  # its name begins as that of a folder

    assert store.list("a") == sorted((StoredObject(key, n) for n, key in enumerate(HOSTILE)), key=lambda each: each.key)
    assert {each.key for each in store.list()} == {*HOSTILE, "ab/c"}
    assert store.list("a/😀") == [StoredObject("a/😀/\u202e", 3)]
    for number, key in enumerate(HOSTILE):
        assert store.get(key) == b"x" * number
    store.put(HOSTILE[0], b"replaced")
    assert store.get(HOSTILE[0]) == b"replaced"
    store.delete([*HOSTILE, "never/there"])
    assert [each.key for each in store.list()] == ["ab/c"]


def test_files_are_sent_and_read_back_unchanged(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(9 << 20)  # of several parts
    (tmp_path / "sent").write_bytes(content)
    store.put_file("files/large", tmp_path / "sent")
    store.get_file("files/large", tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == content
    assert store.list("files") == [StoredObject("files/large", len(content))]


def test_what_is_missing_or_too_large_is_an_error(store: ObjectStore, tmp_path: Path) -> None:
    store.put("folder/key", b"12345")
    assert store.list("nothing") == []
    for missing in ("folder/no", "folder/key/deeper", "folder"):
        with pytest.raises(ObjectMissingError, match=f"has no {missing}"):
            store.get(missing)
    with pytest.raises(ObjectMissingError):
        store.get_file("no", tmp_path / "read")
    with pytest.raises(InvalidObjectError, match="more than 4 bytes"):
        store.get("folder/key", max_bytes=4)
    with pytest.raises(InvalidObjectError, match=r"folder/key: cannot be read: has more than 4 bytes"):
        store.get_file("folder/key", tmp_path / "read", max_bytes=4)
    store.get_file("folder/key", tmp_path / "read", max_bytes=5)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\nb", "a\0b", "x" * 256, "x/" * 600, "a\\b"]
)
def test_keys_that_lead_elsewhere_are_refused(key: str) -> None:
    with pytest.raises(InvalidObjectError, match="is no key"):
        check_key(key)


@needs_s3
def test_503s_and_cut_connections_are_survived(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://lake/{tmp_path.name}", {**s3.options, **KEYS})
    large = os.urandom(9 << 20)
    (tmp_path / "large").write_bytes(large)
    s3.failures, s3.requests[:] = 0.2, []
    for number in range(15):
        store.put(f"n/{number}", bytes(1000 * number))
    store.put_file("large", tmp_path / "large")
    assert [store.get(f"n/{number}") for number in range(15)] == [bytes(1000 * number) for number in range(15)]
    store.get_file("large", tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == large
    assert len(store.list("n")) == 15
    s3.failures = 0.0


@pytest.mark.slow
@needs_s3
def test_a_part_may_take_longer_than_other_requests(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_store, "REQUEST_SECONDS", 0.8)
    monkeypatch.setattr(cloud_store, "MAX_RETRIES", 0)
    s3.failures, s3.pause = 0.0, 1.5
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    store = open_store(f"s3://lake/{tmp_path.name}", {**s3.options, **KEYS})
    store.put_file("file", tmp_path / "large")
    store.put("content", bytes(2 << 20))
    store.get_file("file", tmp_path / "read")
    s3.pause = 0.0
    assert [each.bytes for each in store.list()] == [2 << 20, 9 << 20]
    assert (tmp_path / "read").read_bytes() == bytes(9 << 20)


@needs_s3
def test_no_conditional_write_is_used(s3: S3, tmp_path: Path) -> None:
    s3.failures, s3.requests[:] = 0.0, []
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    store = open_store(f"s3://lake/{tmp_path.name}", {**s3.options, **KEYS})
    store.put("a", b"1")
    store.put("a", b"2")
    store.put_file("large", tmp_path / "large")
    assert {method for method, *_ in s3.requests} == {"PUT", "POST"}
    assert not {name for *_, headers in s3.requests for name in headers if name.lower().startswith("if-")}


@needs_s3
def test_a_storage_that_fails_for_good_ends_within_the_time_limit_with_a_sentence(s3: S3, tmp_path: Path) -> None:
    s3.failures = 1.0
    store = open_store("s3://lake/x", {**s3.options, **KEYS}, limit=TimeLimit(1.0))
    started = time.monotonic()
    with pytest.raises(ObjectStoreError, match=r"^s3://lake/x/key: cannot be written: "):
        store.put("key", b"")
    assert time.monotonic() - started < 3
    s3.failures = 0.0


@needs_s3
def test_errors_say_what_to_do_and_show_no_secret(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_store, "MAX_RETRIES", 0)
    options = {**s3.options, **KEYS}
    errors: list[BaseException] = []
    for address, changed, sentence in (
        ("s3://no-such-bucket/x", {}, "there is no such bucket"),
        ("s3://lake/x", {"ca_file": ""}, "its certificate is not trusted; check ca_file"),
        ("s3://lake/x", {"endpoint": "https://127.0.0.1:9"}, "cannot be reached|connection is refused"),
        ("s3://lake/x", {"endpoint": "https://no.invalid"}, "host name cannot be resolved|cannot be reached"),
    ):
        with pytest.raises((ObjectStoreError, SettingsError), match=sentence) as caught:
            open_store(address, {k: v for k, v in (options | changed).items() if v != ""}).get("key")
        errors.append(caught.value)
    s3.failures, s3.status = 1.0, 403
    with pytest.raises(ObjectStoreError) as caught:
        open_store(
            "az://lake/x",
            {
                "account_name": "account",
                "sas_token": Secret("sv=2020&sig=SIGCANARY"),
                "endpoint": s3.endpoint,
                "ca_file": str(s3.ca_file),
            },
        ).put("key", b"")
    s3.failures, s3.status = 0.0, 503
    for error in (*errors, caught.value):
        assert not re.search("CANARY|sig=", "".join(traceback.format_exception(error)))


@pytest.mark.parametrize(
    ("address", "options", "sentence"),
    [
        ("ftp://x/y", {}, "give a directory, or an address with s3://"),
        ("s3://", {}, "give s3://BUCKET/FOLDER"),
        ("s3://key:secret@lake/x", {}, "without a password"),
        ("s3://lake/../x", {}, "give s3://BUCKET/FOLDER"),
        ("s3://lake", {"regoin": "x"}, "regoin: is no option; the options are access_key_id"),
        ("s3://lake", {"ca_file": "/no/such/file"}, "/no/such/file: cannot be read: No such file"),
        ("s3://lake", {"endpoint": "storage.example.com"}, "endpoint: give https://HOST"),
        ("s3://lake", {"endpoint": "https://key:secret@host"}, "endpoint: give https://HOST"),
        ("audits", {"region": "x"}, "a directory has no such option"),
        ("az://lake", {"account_name": "a", "account_key": Secret("CANARY")}, "cannot be used"),
    ],
)
def test_addresses_and_options_that_cannot_be_used_are_refused(
    address: str, options: dict[str, str], sentence: str
) -> None:
    if "://lake" in address and "regoin" not in options:
        pytest.importorskip("obstore")
    with pytest.raises(SettingsError, match=sentence) as caught:
        open_store(address, options)
    assert "key:secret" not in str(caught.value)
    assert "CANARY" not in f"{caught.value} {caught.value.__context__}"


class TestDirectory:
    def test_links_of_other_files_are_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("x")
        store = open_store(str(tmp_path / "lake"))
        store.put("a/b", b"1")
        (tmp_path / "lake" / "a" / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(ObjectStoreError, match="is a link"):
            store.get("a/link")
        store.put("a/link", b"2")
        assert (tmp_path / "secret").read_text() == "x"
        assert store.get("a/link") == b"2"

    def test_what_a_killed_process_left_is_removed_later_and_never_listed(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "lake"))
        store.put("a/b", b"1")
        left = [tmp_path / "lake" / "a" / f".b.{number:08x}.new" for number in range(2)]
        for path in left:
            path.write_bytes(b"half")
        os.utime(left[0], (0, 0))
        assert store.list() == [StoredObject("a/b", 1)]
        store.put("a/b", b"2")
        assert [path.exists() for path in left] == [False, True]  # the other one may be in progress

    def test_a_directory_whose_parent_is_missing_is_not_created(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectStoreError, match="No such file or directory"):
            open_store(str(tmp_path / "not mounted" / "lake")).put("a", b"")
        assert not (tmp_path / "not mounted").exists()

    def test_a_directory_that_is_a_file_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ObjectStoreError, match="cannot be written"):
            open_store(str(tmp_path / "file")).put("a", b"")
