import os
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, get_args

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import ExitReasonCode, RunFolderError, RunNotWritableError
from auditor.runs.folder import find_run
from auditor.runs.manifest import (
    MANIFEST,
    AccountInfo,
    DeviceCounts,
    FailureInfo,
    FileInfo,
    FleetInfo,
    Manifest,
    read_manifest,
    write_manifest,
)
from auditor.runs.selection_info import ExitReason, Planned, Rate, RequestCounts, SelectionInfo

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
count = st.integers(0, 2**53)
rate = st.floats(0, 1e9)
manifests = st.builds(
    Manifest,
    auditor_version=text,
    name=text,
    state=st.sampled_from(["running", "complete", "within_tolerance", "partial", "aborted"]),
    started_at=text,
    accounts=st.lists(st.builds(AccountInfo, text, text, text, st.none() | rate), max_size=2).map(tuple),
    fleet=st.builds(FleetInfo, text, count, count, text),
    finished_at=st.none() | text,
    devices=st.builds(DeviceCounts, count, count, count, count, count),
    requests=st.builds(RequestCounts, count, count, count),
    rate=st.builds(Rate, st.none() | rate, rate, st.none() | rate, st.none() | rate, rate),
    planned=st.none() | st.builds(Planned, count, st.none() | rate, st.none() | count),
    failures=st.lists(st.builds(FailureInfo, text, count, text), max_size=2).map(tuple),
    error=st.none() | text,
    files=st.lists(st.builds(FileInfo, text, count, text), max_size=2).map(tuple),
    max_failed=st.none() | count | st.sampled_from(["0%", "0.5%", "100%"]),
    exit_code=st.none() | st.integers(0, 255),
    exit_reason=st.none() | st.builds(ExitReason, st.sampled_from(get_args(ExitReasonCode)), text),
    trial=st.booleans(),
)
in_one_folder = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

PLAIN = Manifest(
    auditor_version="1",
    name="nightly",
    state="running",
    started_at="2026-11-22T02:00:00.000Z",
    accounts=(AccountInfo("demo", "https://example.com/", "tuya", 10),),
    fleet=FleetInfo("fleet.csv", 3, 0, "00"),
)


def run_at(folder: Path, started_at: str = PLAIN.started_at) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder, replace(PLAIN, started_at=started_at))
    return folder


@in_one_folder
@given(manifests)
def test_a_manifest_is_read_back_as_written(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_keys_are_those_of_the_contract_and_start_with_schema_version(tmp_path: Path) -> None:
    write_manifest(tmp_path, PLAIN)
    content = (tmp_path / MANIFEST).read_bytes()
    assert content.startswith(b'{\n  "schema_version": 2,\n')
    assert content.endswith(b"\n}\n")
    table = orjson.loads(content)
    assert set(table) == {
        *("schema_version", "auditor_version", "name", "state", "started_at", "finished_at", "accounts", "fleet"),
        *("devices", "requests", "rate", "planned", "failures", "error", "files", "resumed_at", "settings"),
        *("settings_sha256", "settings_file", "clock_offset", "silent", "mismatched"),
        *("never_activated", "discovery", "selection", "carried", "unsampled", "oldest_answer_at"),
        *("max_failed", "exit_code", "exit_reason", "trial", "changes", "releases", "modules", "problems"),
    }
    assert list(table["devices"]) == ["ok", "empty", "not_found", "failed", "pending"]
    fleet = ["source", "devices", "duplicates", "sha256", "limit", "excluded_accounts"]
    assert list(table["fleet"]) == [*fleet, "aliases", "possible_aliases", "shared_identities"]
    assert list(table["rate"]) == ["target", "achieved", "learned", "latency", "in_flight"]
    assert list(table["accounts"][0]) == ["name", "endpoint", "dialect", "quota"]


@pytest.mark.parametrize("value", ['"5"', "-1", '"x%"', "0.5", "[]"])
def test_a_limit_that_cannot_be_counted_with_is_no_manifest(tmp_path: Path, value: str) -> None:
    write_manifest(tmp_path, replace(PLAIN, max_failed="0.5%"))
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"0.5%"', value))
    with pytest.raises(RunFolderError, match=r"is not a manifest: .*max_failed"):
        read_manifest(tmp_path)


def test_a_reader_sees_the_old_manifest_or_the_new_one_never_a_part(tmp_path: Path) -> None:
    write_manifest(tmp_path, PLAIN)
    done, seen = Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(len(read_manifest(tmp_path).name))

    reader = Thread(target=read)
    reader.start()
    try:
        for size in (10, 100_000) * 30:
            write_manifest(tmp_path, replace(PLAIN, name="n" * size))
    finally:
        done.set()
        reader.join()
    assert seen <= {len(PLAIN.name), 10, 100_000}
    assert len(seen) > 1


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, PLAIN)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunNotWritableError, match=r"run\.json: cannot be written: No space left"):
            write_manifest(tmp_path, replace(PLAIN, name="new"))
    assert read_manifest(tmp_path) == PLAIN
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_missing_folder_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunNotWritableError, match="No such file"):
        write_manifest(tmp_path / "gone", PLAIN)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"{}", b"\xff", b'"run"', b"1e999", b"[" * 100_000, b'{"name":"\xed\xa0\x80"}'],
)
def test_an_invalid_manifest_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json: is not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("number", [2**64 - 1, 2**53 + 1, -(2**53) - 1])
def test_a_number_that_could_not_be_added_to_is_refused(tmp_path: Path, number: int) -> None:
    write_manifest(tmp_path, replace(PLAIN, requests=RequestCounts(sent=4_444)))
    content = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(content.replace(b"4444", b"%d" % number))
    with pytest.raises(RunFolderError, match=r"run\.json: is not a manifest"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content.replace(b"4444", b"%d" % 2**53))
    sent = read_manifest(tmp_path).requests.sent
    write_manifest(tmp_path, replace(PLAIN, requests=RequestCounts(sent=1_000 * sent)))


def test_large_numbers_that_a_user_configured_are_read(tmp_path: Path) -> None:
    selection, fleet = SelectionInfo("sample", seed=2**63 - 1), replace(PLAIN.fleet, limit=10**18)
    manifest = replace(PLAIN, selection=selection, fleet=fleet, settings={"max_failed": 10**18})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_of_another_schema_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(PLAIN, schema_version=1, auditor_version="9.9"))
    with pytest.raises(RunFolderError, match=r"schema_version 1.*'9\.9'"):
        read_manifest(tmp_path)


def test_a_folder_without_or_with_an_unreadable_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"it has no run\.json"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(RunFolderError, match="cannot be read: Is a directory"):
        read_manifest(tmp_path)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@in_one_folder
@given(st.data())
def test_a_hostile_manifest_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    table: dict[str, Any] = {"schema_version": 2} | orjson.loads(orjson.dumps(PLAIN))
    for key in data.draw(st.sets(st.sampled_from(sorted(table)), max_size=3)):
        if isinstance(table[key], dict) and data.draw(st.booleans()):
            table[key][data.draw(st.sampled_from(sorted(table[key])))] = data.draw(json)
        elif data.draw(st.booleans()):
            table[key] = data.draw(json)
        else:
            del table[key]
    try:
        content = orjson.dumps(table)
    except TypeError:  # an integer of more than 64 bits
        content = repr(table).encode()
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (tmp_path / MANIFEST).write_bytes(content[:cut] + data.draw(st.binary(max_size=3)))
    try:
        assert isinstance(read_manifest(tmp_path), Manifest)
    except RunFolderError as error:
        assert str(error).startswith(str(tmp_path))  # noqa: PT017


def test_a_run_folder_is_found_as_itself(tmp_path: Path) -> None:
    assert find_run(run_at(tmp_path / "a")) == tmp_path / "a"


def test_a_directory_of_runs_refers_to_the_newest_of_any_name(tmp_path: Path) -> None:
    run_at(tmp_path / "z", "2026-11-20T00:00:00.000Z")
    newest = run_at(tmp_path / "a", "2026-11-22T00:00:00.000Z")
    run_at(tmp_path / "m", "2026-11-21T23:59:59.999Z")
    assert find_run(tmp_path) == newest


def test_the_later_name_counts_of_two_runs_with_the_same_start(tmp_path: Path) -> None:
    run_at(tmp_path / "20261122T020000Z-nightly")
    later = run_at(tmp_path / "20261122T020000Z-nightly-2")
    assert find_run(tmp_path) == later


def test_unfinished_folders_and_other_files_are_no_runs(tmp_path: Path) -> None:
    run_at(tmp_path / ".new-20261122T020000Z-nightly-1", "2099-01-01T00:00:00.000Z")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="contains no run"):
        find_run(tmp_path)
    real = run_at(tmp_path / "real")
    assert find_run(tmp_path) == real


@pytest.mark.parametrize("name", ["gone", "x" * 5000, "nul\0"])
def test_a_missing_folder_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError):
        find_run(tmp_path / name)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is not a folder; give a run folder"):
        find_run(tmp_path / "file")
