import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from auditor.errors import RunFolderError
from auditor.runs.folder import DEVICES, FAILURES, FLEET, INVENTORY_CSV, INVENTORY_JSON, MODULES, RESULTS, SEALED
from auditor.runs.journal import encode_outcome
from auditor.runs.manifest import FileInfo, Manifest, file_info, read_manifest
from auditor.runs.verify import verify_run
from tests.database import connect
from tests.runs.run_folders import (
    both,
    build,
    by_id,
    edit_manifest,
    every_status,
    failed,
    named,
    not_found,
    ok,
    running,
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_status(tmp_path_factory.mktemp("verify") / "run").folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return shutil.copytree(honest, tmp_path / "run")


def cover_up(folder: Path) -> None:
    """Lists the files as they are now: what a forger who knows of digests does."""

    def listed(manifest: Manifest) -> Manifest:
        fleet = replace(manifest.fleet, sha256=file_info(folder / FLEET).sha256)
        return replace(manifest, fleet=fleet, files=tuple(file_info(folder / facts.name) for facts in manifest.files))

    edit_manifest(folder, listed)


def test_an_unchanged_run_verifies(folder: Path) -> None:
    assert verify_run(folder) == []


def test_an_unchanged_complete_run_verifies(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(3)]
    outcomes = [ok(fleet[2], ("ble", "1")), ok(fleet[0]), not_found(fleet[1])]
    assert verify_run(build(tmp_path / "run", fleet, outcomes).folder) == []


@pytest.mark.parametrize("name", ["aliases", "possible_aliases", "shared_identities"])
def test_false_numbers_of_devices_with_the_names_of_another_one_are_found(tmp_path: Path, name: str) -> None:
    one, same = both(1), structs.replace(both(2), iot_id=both(1).iot_id)
    fleet = [named(1), named(2), by_id(1), by_id(3), named(4)]
    outcomes = [ok(fleet[0], ("ble", "1"), learnt=one), ok(fleet[1], ("ble", "1"), learnt=same)]
    folder = build(tmp_path / "run", fleet, outcomes).folder
    found = read_manifest(folder).fleet
    assert (found.aliases, found.possible_aliases, found.shared_identities) == (1, 1, 3)
    assert verify_run(folder) == []
    edit_manifest(folder, lambda run: replace(run, fleet=replace(run.fleet, **{name: getattr(found, name) - 1})))
    assert [each.partition(" do not")[0] for each in verify_run(folder)] == [
        "run.json: its numbers of devices with the names of another one"
    ]


def test_forging_digests_without_a_change_still_verifies(folder: Path) -> None:
    cover_up(folder)
    assert verify_run(folder) == []


Lines = Callable[[list[bytes]], list[bytes]]
FOREIGN = encode_outcome(ok(named(77), ("ble", "1.0")))
LINES: list[tuple[str, str, Lines, str]] = [
    ("a line removed", RESULTS, lambda lines: lines[1:], r"run\.json: says ok 4.*the files say ok 3"),
    ("the last line removed", RESULTS, lambda lines: lines[:-1], r"run\.json: says ok 4.*the files say ok 3"),
    (
        "a line doubled",
        RESULTS,
        lambda lines: [*lines, lines[0]],
        "1 more lines than devices: p1/device0000 has two lines",
    ),
    ("one lost, another doubled", RESULTS, lambda lines: [*lines[1:], lines[1]], "1 more lines than devices"),
    ("a version altered", RESULTS, lambda lines: [lines[0].replace(b"1.0", b"1.9"), *lines[1:]], "does not follow"),
    ("a name altered", RESULTS, lambda lines: [lines[0].replace(b"ce0000", b"ce0009"), *lines[1:]], "no device"),
    ("a total altered", RESULTS, lambda lines: [lines[0].replace(b'"total":2', b'"total":3')], "contradict them"),
    ("ok without modules", RESULTS, lambda lines: [lines[3].replace(b"empty", b"ok")], "contradict themselves"),
    ("a status unknown", RESULTS, lambda lines: [lines[0].replace(b'"ok"', b'"fine"')], "1 of 1 lines cannot be read"),
    ("a foreign device", RESULTS, lambda lines: [*lines, FOREIGN], "1 lines are about no device of the fleet"),
    ("garbage", RESULTS, lambda lines: [*lines, b"garbage\n"], "1 of 7 lines cannot be read"),
    ("garbage amid", RESULTS, lambda lines: [lines[0], b"\xff\0{\n", *lines[1:]], "1 of 7 lines cannot be read"),
    ("half a line amid", RESULTS, lambda lines: [lines[0][:40], *lines[1:]], "1 of 5 lines cannot be read"),
    ("order changed", RESULTS, lambda lines: lines[::-1], ""),
    ("a failure removed", FAILURES, lambda lines: lines[1:], r"the files say .* failed 1, pending 3"),
    (
        "a failure doubled",
        FAILURES,
        lambda lines: [*lines, lines[0]],
        "1 more lines than devices: p1/device0005 has two lines",
    ),
    (
        "a failure's code",
        FAILURES,
        lambda lines: [lines[0], lines[1].replace(b"iot.odd", b"iot.eve")],
        "by code do not",
    ),
    ("a failure's text", FAILURES, lambda lines: [lines[0].replace(b"answer", b"ANSWER"), lines[1]], "does not follow"),
    (
        "a foreign failure",
        FAILURES,
        lambda lines: [*lines, encode_outcome(failed(named(77)))],
        "1 lines are about no device",
    ),
    (
        "failed and answered",
        FAILURES,
        lambda lines: [*lines, encode_outcome(failed(named(0)))],
        "or one that was answered",
    ),
    ("a failure that is ok", FAILURES, lambda lines: [lines[0].replace(b'"failed"', b'"ok"')], "1 of 1 lines cannot"),
    ("garbage for a failure", FAILURES, lambda lines: [*lines, b"{}\n"], "1 of 3 lines cannot be read"),
]


@pytest.mark.parametrize(("name", "change", "says"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_changed_line_is_found_though_its_digest_was_forged(
    folder: Path, name: str, change: Lines, says: str
) -> None:
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(change(lines)))
    cover_up(folder)
    problems = verify_run(folder)
    if not says:
        assert problems == []
        return
    assert any(re.search(says, problem) for problem in problems), problems


@pytest.mark.parametrize("name", [FLEET, RESULTS, FAILURES, *SEALED])
def test_a_changed_byte_is_found_by_its_digest(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{name}: is not the file that was sealed (its digest differs)" in verify_run(folder)


CHANGES = [
    (DEVICES, "REPLACE ('ok' AS status)"),
    (DEVICES, "REPLACE (ordinal + 1 AS ordinal)"),
    (DEVICES, "REPLACE (CASE WHEN ordinal = 5 THEN 'iot.odd' ELSE code END AS code)"),
    (MODULES, "REPLACE ('1.0' AS module_version)"),
    (MODULES, "REPLACE (CASE module_version WHEN '1.0' THEN '1.1' ELSE module_version END AS module_version)"),
    (MODULES, "EXCLUDE (iot_id)"),
    (MODULES, "REPLACE (module_version::BLOB AS module_version)"),
    (MODULES, "REPLACE (1.5::DECIMAL(9, 2) AS product_key)"),
    (DEVICES, "REPLACE (request_id::BLOB AS request_id)"),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_changed_parquet_file_is_found_though_its_digest_was_forged(folder: Path, name: str, change: str) -> None:
    rewrite(folder / name, f"SELECT * {change} FROM old")
    cover_up(folder)
    assert f"{name}: does not follow from {RESULTS} and {FAILURES}" in verify_run(folder)


@pytest.mark.parametrize("query", ["FROM old LIMIT 5", "FROM old UNION ALL (FROM old LIMIT 1)"])
@pytest.mark.parametrize("name", [DEVICES, MODULES])
def test_a_missing_or_extra_parquet_row_is_found(folder: Path, name: str, query: str) -> None:
    rewrite(folder / name, query)
    cover_up(folder)
    assert f"{name}: does not follow from {RESULTS} and {FAILURES}" in verify_run(folder)


def test_a_column_name_with_sql_is_quoted(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "stolen"
    name = f"account)::HUGEINT) FROM devices; COPY (SELECT 1) TO '{target}' (FORMAT csv); --"
    rewrite(folder / DEVICES, f'SELECT *, 1 AS "{name}" FROM old')
    assert f"{DEVICES}: does not follow from {RESULTS} and {FAILURES}" in verify_run(folder)
    assert not target.exists()


def rewrite(path: Path, query: str) -> None:
    new = path.with_suffix(".new")
    with connect() as database:
        database.execute(f"CREATE TEMP VIEW old AS FROM read_parquet('{path}')")
        database.execute(f"COPY ({query}) TO '{new}' (FORMAT parquet)")
    new.replace(path)


def test_a_removed_device_is_found(folder: Path) -> None:
    rewrite(folder / FLEET, "FROM old WHERE ordinal <> 7")
    assert f"{FLEET}: is not the fleet of the run (its digest differs)" in verify_run(folder)
    cover_up(folder)
    problems = verify_run(folder)
    assert f"{FLEET}: has 9 devices, the manifest says 10" in problems


def test_a_device_in_two_rows_of_the_fleet_is_found_though_a_line_is_about_both(folder: Path) -> None:
    names = "CASE WHEN ordinal = 1 THEN 'device0000' ELSE device_name END AS device_name"
    rewrite(folder / FLEET, f"SELECT * REPLACE ({names}) FROM old")
    cover_up(folder)
    assert "fleet.parquet: has 1 devices twice, so that a line is about more than one row" in verify_run(folder)


@pytest.mark.parametrize("name", [INVENTORY_JSON, INVENTORY_CSV])
def test_an_edited_inventory_is_found_though_its_digest_was_forged(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"0.666667", b"0.766667"))
    assert (folder / name).read_bytes() != content
    cover_up(folder)
    assert verify_run(folder) == [not_following(name)]


def not_following(name: str) -> str:
    return f"{name}: does not follow from {MODULES}"


def count(manifest: Manifest, **counts: int) -> Manifest:
    return replace(manifest, devices=replace(manifest.devices, **counts))


EDITS: list[tuple[Callable[[Manifest], Manifest], str]] = [
    (lambda m: count(m, ok=5), "run.json: says ok 5"),
    (lambda m: count(m, failed=1, pending=3), "run.json: says ok 4"),
    (lambda m: replace(m, state="complete"), "run.json: says complete, but 4 devices failed or are pending"),
    (lambda m: replace(m, failures=m.failures[:1]), "run.json: its failures by code"),
    (lambda m: replace(m, failures=(replace(m.failures[0], devices=9), *m.failures[1:])), "run.json: its failures by"),
    (lambda m: replace(m, fleet=replace(m.fleet, devices=11)), "fleet.parquet: has 10 devices, the manifest says 11"),
    (lambda m: replace(m, fleet=replace(m.fleet, sha256="0" * 64)), "fleet.parquet: is not the fleet of the run"),
    (lambda m: replace(m, files=m.files[1:]), "fleet.parquet: is not listed in the manifest"),
    (lambda m: replace(m, files=()), "inventory.json: is not listed in the manifest"),
    (lambda m: replace(m, files=(*m.files, FileInfo("x" * 5000, 0, ""))), "run.json: lists 'xxx"),
    (
        lambda m: replace(m, files=(*m.files, FileInfo("../../etc/passwd", 0, ""))),
        "run.json: lists '../../etc/passwd'",
    ),
    (lambda m: replace(m, files=(replace(m.files[0], bytes=1), *m.files[1:])), "fleet.parquet: is not the file that"),
    (lambda m: replace(m, state="running"), "run: was killed, so it is not sealed; resume it"),
]


@pytest.mark.parametrize(("edit", "says"), EDITS, ids=[says[:60] for _, says in EDITS])
def test_an_edited_manifest_is_found(folder: Path, edit: Callable[[Manifest], Manifest], says: str) -> None:
    edit_manifest(folder, edit)
    problems = verify_run(folder)
    assert any(problem.startswith(says) for problem in problems), problems


@pytest.mark.parametrize("name", [FLEET, RESULTS, FAILURES, *SEALED])
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name}: is missing" in verify_run(folder)


@pytest.mark.parametrize("name", [FLEET, DEVICES, MODULES])
@pytest.mark.parametrize("content", [b"", b"PAR1 nothing here"])
def test_a_broken_parquet_file_is_found_and_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    cover_up(folder)
    assert any("a file cannot be read" in problem and name in problem for problem in verify_run(folder))


@pytest.mark.parametrize("name", [FLEET, DEVICES, MODULES])
def test_an_unreadable_column_name_is_reported(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"product_key", b"\xedroduct_key"))
    assert any(problem.startswith("run: a file cannot be read: ") for problem in verify_run(folder))


def test_files_that_were_swapped_are_found(folder: Path) -> None:
    other = folder / "other"
    (folder / DEVICES).rename(other)
    (folder / MODULES).rename(folder / DEVICES)
    other.rename(folder / MODULES)
    assert {problem.split(":")[0] for problem in verify_run(folder)} >= {DEVICES, MODULES}
    cover_up(folder)
    assert verify_run(folder) != []


def test_only_the_missing_seal_of_an_unsealed_run_is_reported(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    with (folder / RESULTS).open("ab") as file:
        file.write(b'{"account":"demo","prod')
    assert verify_run(folder) == ["run: was killed, so it is not sealed; resume it"]


@pytest.mark.parametrize("status", ["'bogus'", "NULL", "7"])
def test_an_unexpected_status_in_parquet_is_reported(folder: Path, status: str) -> None:
    rewrite(folder / DEVICES, f"SELECT * REPLACE ({status} AS status) FROM old")
    problems: list[Any] = verify_run(folder)
    assert f"{DEVICES}: does not follow from {RESULTS} and {FAILURES}" in problems


def test_verifying_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    verify_run(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        verify_run(tmp_path)
