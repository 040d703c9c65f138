import csv
import io
import itertools
import tempfile
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.engine.device_reader import MAX_CHARACTERS, MAX_MODULES
from auditor.errors import RunNotWritableError
from auditor.fleet.snapshot import write_snapshot
from auditor.models import Device, DeviceResult, Outcome
from auditor.runs.folder import DEVICES, FAILURES, FLEET, MODULES, RESULTS, SEALED
from auditor.runs.journal import encode_outcome
from auditor.runs.manifest import DeviceCounts, read_manifest
from auditor.runs.seal import seal_run
from auditor.runs.verify import verify_run
from tests.database import connect
from tests.runs import run_folders
from tests.runs.run_folders import (
    HOSTILE,
    Built,
    both,
    by_id,
    failed,
    finish,
    named,
    not_found,
    ok,
    running,
    write_fleet,
)

build = partial(run_folders.build, afresh=True)
every_status = partial(run_folders.every_status, afresh=True)

COLUMNS = ["account", "product_key", "module_name", "module_version", "devices", "share"]


def described(path: Path) -> list[Any]:
    with connect() as database:
        return database.execute("DESCRIBE FROM read_parquet(?)", [str(path)]).fetchall()


def rows(path: Path, columns: str = "*") -> list[tuple[Any, ...]]:
    """A Parquet file's rows; those of devices by their place in the fleet."""
    order = "ORDER BY ordinal" if path.name == DEVICES else ""
    with connect() as database:
        return database.execute(f"SELECT {columns} FROM read_parquet(?) {order}", [str(path)]).fetchall()


def test_the_fleets_of_these_tests_are_what_a_snapshot_writes(tmp_path: Path) -> None:
    fleet = [named(1), by_id(2), both(3)]
    source = tmp_path / "fleet.jsonl"
    source.write_text('{"product_key":"p1","device_name":"device0001"}\n{"iot_id":"iot0002"}\n')
    with source.open("a") as file:
        file.write('{"product_key":"p1","device_name":"device0003","iot_id":"iot0003"}\n')
    write_snapshot([("demo", str(source))], tmp_path / "a.parquet")
    write_fleet(tmp_path / "b.parquet", fleet)
    assert rows(tmp_path / "a.parquet") == rows(tmp_path / "b.parquet")
    assert described(tmp_path / "a.parquet") == described(tmp_path / "b.parquet")


def test_every_device_of_the_fleet_has_one_row_with_its_state(tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    states = rows(tmp_path / "run" / DEVICES, "ordinal, account, device_name, status, modules, pages, attempts, code")
    assert states == [
        (0, "demo", "device0000", "ok", 2, 1, 1, None),
        (1, "demo", "device0001", "ok", 1, 1, 1, None),
        (2, "demo", "device0002", "ok", 2, 1, 1, None),
        (3, "demo", "device0003", "empty", 0, 1, 1, None),
        (4, "demo", "device0004", "not_found", 0, 0, 1, None),
        (5, "demo", "device0005", "failed", 0, 0, 5, "auditor.Timeout"),
        (6, "demo", "device0006", "failed", 0, 0, 5, "iot.odd"),
        (7, "demo", "device0007", "pending", 0, 0, 0, None),
        (8, "other", "device0000", "ok", 1, 1, 1, None),
        (9, "other", "device0001", "pending", 0, 0, 0, None),
    ]
    manifest = read_manifest(tmp_path / "run")
    assert manifest.devices == DeviceCounts(ok=4, empty=1, not_found=1, failed=2, pending=2)
    assert [(facts.code, facts.devices, facts.example) for facts in manifest.failures] == [
        ("auditor.Timeout", 1, "p1/device0005"),
        ("iot.odd", 1, "p1/device0006"),
    ]


def test_times_messages_and_request_ids_reach_the_parquet_file(tmp_path: Path) -> None:
    build(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1")), failed(named(1))])
    columns = "audited_at::VARCHAR, request_id, failed_at::VARCHAR, message, http_status"
    assert rows(tmp_path / "run" / DEVICES, columns) == [
        ("2026-11-22 02:00:03.123", "r-1", None, None, None),
        (None, None, "2026-11-22 02:00:05", 'no "answer"\n', None),
    ]


def test_modules_have_a_row_per_device_and_module(tmp_path: Path) -> None:
    every_status(tmp_path / "run")
    assert rows(tmp_path / "run" / MODULES) == [
        ("demo", "p1", "device0000", None, "ble", "1.0"),
        ("demo", "p1", "device0000", None, "default", "2.0"),
        ("demo", "p1", "device0001", None, "ble", "1.0"),
        ("demo", "p1", "device0002", None, "ble", "1.1"),
        ("demo", "p1", "device0002", None, "=cmd", "@evil"),
        ("other", "p2", "device0000", None, "ble", "9"),
    ]


KNOWN = both(1)


@pytest.mark.parametrize(
    ("asked", "answer", "identity"),
    [
        (named(1), ok(KNOWN, ("ble", "1")), ("p1", "device0001", "iot0001")),
        (named(1), ok(named(1), ("ble", "1")), ("p1", "device0001", None)),
        (by_id(1), ok(KNOWN, ("ble", "1")), ("p1", "device0001", "iot0001")),
        (by_id(1), ok(by_id(1), ("ble", "1")), (None, None, "iot0001")),
        (both(1), ok(KNOWN, ("ble", "1")), ("p1", "device0001", "iot0001")),
    ],
)
@pytest.mark.parametrize("beside", [(), (named(8), by_id(9))])
def test_an_answer_is_matched_however_the_fleet_names_its_device(
    tmp_path: Path, asked: Device, answer: DeviceResult, identity: tuple[str | None, ...], beside: tuple[Device, ...]
) -> None:
    build(tmp_path / "run", [asked, *beside], [answer, *(failed(device) for device in beside)])
    found = rows(tmp_path / "run" / DEVICES, "product_key, device_name, iot_id, status")
    assert found[0] == (*identity, "ok")
    assert [row[-1] for row in found] == ["ok"] + ["failed"] * len(beside)
    assert verify_run(tmp_path / "run") == []


@pytest.mark.parametrize("other", [[], [failed(by_id(1))], [ok(KNOWN, ("ble", "1"))], [ok(KNOWN, ("ble", "2"))]])
def test_aliases_of_one_device_are_two_rows_of_a_valid_run(tmp_path: Path, other: list[Outcome]) -> None:
    build(tmp_path / "run", [named(1), by_id(1)], [ok(KNOWN, ("ble", "1")), *other])
    assert rows(tmp_path / "run" / DEVICES, "ordinal, status") == [(0, "ok"), (1, "ok")]
    assert verify_run(tmp_path / "run") == []


def test_aliases_in_different_partitions_are_two_rows_of_a_valid_run(tmp_path: Path) -> None:
    with mock.patch("auditor.runs.views.DEVICES_PER_PARTITION", 1):
        build(tmp_path / "run", [named(1), by_id(1)], [ok(KNOWN, ("ble", "1")), ok(KNOWN, ("ble", "2"))])
        assert rows(tmp_path / "run" / DEVICES, "ordinal, status") == [(0, "ok"), (1, "ok")]
        assert verify_run(tmp_path / "run") == []


@pytest.mark.parametrize("first", [both(1), Device("demo", "p1", None, "iot0001"), named(1)])
def test_an_answer_belongs_to_the_device_with_all_of_its_names(tmp_path: Path, first: Device) -> None:
    second = Device("demo", "p2", "other", "iot0001")
    outcomes = [ok(KNOWN, ("ble", "1")), ok(second, ("ble", "2"), ("wifi", "3"))]
    build(tmp_path / "run", [first, second], outcomes)
    found = rows(tmp_path / "run" / DEVICES, "product_key, device_name, status, modules")
    assert found == [("p1", "device0001", "ok", 1), ("p2", "other", "ok", 2)]
    assert verify_run(tmp_path / "run") == []


def test_the_same_iot_id_in_two_accounts_is_two_devices(tmp_path: Path) -> None:
    fleet = [by_id(1), by_id(1, account="other")]
    build(tmp_path / "run", fleet, [ok(fleet[0], ("ble", "1")), not_found(fleet[1])])
    assert rows(tmp_path / "run" / DEVICES, "account, status") == [("demo", "ok"), ("other", "not_found")]


def test_hostile_versions_survive_in_parquet_and_json_as_they_are(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(len(HOSTILE))]
    build(tmp_path / "run", fleet, [ok(d, (f"m{n:02}", HOSTILE[n])) for n, d in enumerate(fleet)])
    assert [row[0] for row in rows(tmp_path / "run" / MODULES, "module_version")] == HOSTILE
    inventory = orjson.loads((tmp_path / "run/inventory.json").read_bytes())["inventory"]
    assert [row["module_version"] for row in inventory] == HOSTILE
    assert verify_run(tmp_path / "run") == []


def test_hostile_module_names_survive_too(tmp_path: Path) -> None:
    built = build(tmp_path / "run", [named(0)], [ok(named(0), *((name or "x", "1") for name in HOSTILE))])
    assert [row[0] for row in rows(built.folder / MODULES, "module_name")] == [name or "x" for name in HOSTILE]


def cells(content: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content, newline=""), strict=True))


FORMULAS = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "＠x", "－1", "=\nx", '="a"']
FORMULAS += ["\0=1", "\ufeff@x"]  # a spreadsheet may drop what nobody sees
INERT = {"\t=1": "\t'=1", "\r=1": "\r'=1", "\n=1": "\n'=1"}  # the second sign is for a spreadsheet that splits there


def test_no_csv_cell_starts_like_a_formula_and_other_cells_are_unchanged(tmp_path: Path) -> None:
    harmless = ["1.0", "'quoted", "a=b", "1-2", ' ="a"', "a; b", "a;b=", "two\nlines", 'quo"te', "a,b"]
    versions = FORMULAS + harmless
    fleet = [named(number) for number in range(len(versions))]
    build(tmp_path / "run", fleet, [ok(d, (f"m{n:02}", versions[n])) for n, d in enumerate(fleet)])
    table = cells((tmp_path / "run/inventory.csv").read_bytes().decode())
    assert table[0] == COLUMNS
    assert [row[3] for row in table[1:]] == ["'" + INERT.get(version, version) for version in FORMULAS] + harmless


def test_no_csv_cell_becomes_a_formula_where_another_character_separates_cells(tmp_path: Path) -> None:
    versions = ["x;=1+1", "x\t@a", "x\n=b", "x|-1", ";=1;=2", 'x";\0＝1', "=1;+2", "a,=1"]
    fleet = [named(number) for number in range(len(versions))]
    build(tmp_path / "run", fleet, [ok(d, (f"m{n:02}", versions[n])) for n, d in enumerate(fleet)])
    content = (tmp_path / "run/inventory.csv").read_bytes().decode()
    inert = ["x;'=1+1", "x\t'@a", "x\n'=b", "x|'-1", ";'=1;'=2", "x\";'\0＝1", "'=1;'+2", "a,=1"]
    assert [row[3] for row in cells(content)[1:]] == inert
    for separator in ";\t|":
        for row in csv.reader(io.StringIO(content, newline=""), delimiter=separator, quoting=csv.QUOTE_NONE):
            assert not any(cell.lstrip('"\0').startswith(("=", "+", "-", "@", "＝")) for cell in row)


def test_formulas_in_products_and_module_names_are_made_safe_too(tmp_path: Path) -> None:
    device = named(0, product="=p")
    build(tmp_path / "run", [device], [ok(device, ("@m", "-v"))])
    assert cells((tmp_path / "run/inventory.csv").read_text())[1] == ["demo", "'=p", "'@m", "'-v", "1", "1.0"]


versions = st.sampled_from(["1.0", "1.1", "2", *HOSTILE])
modules = st.dictionaries(st.sampled_from(["ble", "default", "mcu", "=x", 'a"b']), versions, max_size=3)
states = st.sampled_from(["ok", "ok", "ok", "not_found", "failed", "pending"])
naming: dict[str, list[Any]] = {"names": [named], "ids": [by_id], "both": [both], "mixed": [named, by_id, both]}


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Device], list[Outcome]]:
    ways = naming[draw(st.sampled_from(sorted(naming)))]
    fleet, outcomes = [], list[Outcome]()
    count = draw(st.integers(1, 12))
    accounts = sorted(draw(st.sampled_from(["demo", "other"])) for _ in range(count))
    for number, account in enumerate(accounts):
        product = draw(st.sampled_from(["p1", "p2"]))
        way = draw(st.sampled_from(ways))
        device = way(number, account=account) if way is by_id else way(number, account=account, product=product)
        fleet.append(device)
        learnt = draw(st.sampled_from([device, both(number, account=account, product=product)]))
        match draw(states):
            case "ok":
                outcomes.append(ok(device, *draw(modules).items(), learnt=learnt))
            case "not_found":
                outcomes.append(not_found(device))
            case "failed":
                outcomes.append(failed(device, draw(st.sampled_from(["a", "b"]))))
    return fleet, draw(st.permutations(outcomes))


def oracle(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The inventory by plain Python."""
    devices = Counter[tuple[str, str | None, str, str]]()
    reporting = defaultdict[tuple[str, str | None, str], int](int)
    for outcome in outcomes:
        if isinstance(outcome, DeviceResult):
            for module in outcome.modules:
                key = (outcome.device.account, outcome.device.product_key, module.module_name)
                devices[*key, module.module_version] += 1
                reporting[key] += 1
    ordered = sorted(devices.items(), key=lambda i: (i[0][0], i[0][1] or "￿", i[0][2], -i[1], i[0][3]))
    return [
        dict(zip(COLUMNS, [*key, number, round(number / reporting[key[:3]], 6)], strict=True))
        for key, number in ordered
    ]


@settings(max_examples=8, deadline=None)
@given(runs())
@pytest.mark.slow
def test_inventory_and_states_are_what_plain_python_counts(run: tuple[list[Device], list[Outcome]]) -> None:
    fleet, outcomes = run
    with tempfile.TemporaryDirectory() as temporary:
        folder = build(Path(temporary, "run"), fleet, outcomes).folder
        table = orjson.loads((folder / "inventory.json").read_bytes())
        expected = oracle(outcomes)
        assert table["inventory"] == [row | {"share": pytest.approx(row["share"], abs=1e-6)} for row in expected]
        for _, version in itertools.groupby(table["inventory"], key=lambda row: [row[name] for name in COLUMNS[:3]]):
            assert sum(row["share"] for row in version) == pytest.approx(1, abs=1e-4)
        counts = Counter(o.status if isinstance(o, DeviceResult) else "failed" for o in outcomes)
        counts["pending"] = len(fleet) - counts.total()
        assert table["devices"] == {name: counts[name] for name in ("ok", "empty", "not_found", "failed", "pending")}
        assert table["complete"] == (counts["failed"] + counts["pending"] == 0)
        listed = cells((folder / "inventory.csv").read_bytes().decode())[1:]
        assert [(row[3].removeprefix("'"), int(row[4])) for row in listed] == [
            (row["module_version"], row["devices"]) for row in expected
        ]
        assert [row[0] for row in rows(folder / DEVICES, "ordinal")] == list(range(len(fleet)))
        assert verify_run(folder) == []


@settings(max_examples=8, deadline=None)
@given(runs().filter(lambda run: len(run[0]) > 4), st.integers(1, 4))
@pytest.mark.slow
def test_a_partitioned_fleet_is_sealed_and_verified_like_one_join(
    run: tuple[list[Device], list[Outcome]], part: int
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        whole = build(Path(temporary, "whole"), *run).folder
        with mock.patch("auditor.runs.views.DEVICES_PER_PARTITION", part):
            parts = build(Path(temporary, "parts"), *run, afresh=True).folder
            assert verify_run(parts) == verify_run(whole) == []
        assert verify_run(parts) == []
        assert rows(parts / DEVICES) == rows(whole / DEVICES)
        with connect() as database:
            lie = database.execute("SELECT ordinal FROM read_parquet(?)", [str(parts / DEVICES)]).fetchall()
        assert [ordinal for (ordinal,) in lie] == list(range(len(run[0]))), "in the fleet's order"
        assert described(parts / DEVICES) == described(whole / DEVICES)
        for name in (MODULES, "inventory.csv", "inventory.json"):
            assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}


def test_partitions_of_a_fleet_with_ordinal_gaps_omit_no_device(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(9)]
    folder = running(tmp_path / "run", fleet, [ok(device, ("ble", "1")) for device in fleet]).folder
    with connect() as database:
        gaps = "SELECT * REPLACE (ordinal * 7 AS ordinal) FROM read_parquet(?)"
        database.execute(f"CREATE TEMP TABLE fleet AS {gaps}", [str(folder / FLEET)])
        database.execute(f"COPY fleet TO '{folder / FLEET}' (FORMAT parquet)")
    with mock.patch("auditor.runs.views.DEVICES_PER_PARTITION", 2):
        assert seal_run(folder).devices == DeviceCounts(9, 0, 0, 0, 0)
    assert [ordinal for (ordinal,) in rows(folder / DEVICES, "ordinal")] == list(range(0, 63, 7))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sealing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    once = content(folder)
    finish(folder)
    assert content(folder) == once


def test_a_sealed_folder_has_only_the_files_of_the_contract(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    assert set(content(folder)) == {"run.json", FLEET, RESULTS, FAILURES, *SEALED}
    assert {facts.name for facts in read_manifest(folder).files} == {FLEET, RESULTS, FAILURES, *SEALED}


def torn(tmp_path: Path) -> Built:
    built = running(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))])
    line = encode_outcome(ok(named(1), ("ble", "2")))
    with (built.folder / RESULTS).open("ab") as file:
        file.write(line[: len(line) // 2])
    return built


def test_a_torn_last_line_is_a_device_that_is_still_pending(tmp_path: Path) -> None:
    folder = torn(tmp_path).folder
    finish(folder)
    assert read_manifest(folder).devices == DeviceCounts(ok=1, pending=1)
    assert verify_run(folder) == []


@pytest.mark.parametrize("kept", [0, 1, 50, 290, 364, 365, 366])
def test_a_line_torn_anywhere_is_pending_and_a_complete_one_counts(tmp_path: Path, kept: int) -> None:
    line = encode_outcome(ok(named(0), ("ble", "1"), ("default", "x" * 80)))
    folder = running(tmp_path / "run", [named(0)], []).folder
    (folder / RESULTS).write_bytes(line[:kept])
    assert seal_run(folder).devices.ok == (1 if kept >= len(line) - 1 else 0)


def test_a_run_without_any_answer_is_sealed_with_an_empty_inventory(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0), named(1)], []).folder
    assert orjson.loads((folder / "inventory.json").read_bytes()) == {
        "schema_version": 2,
        "complete": False,
        "devices": {"ok": 0, "empty": 0, "not_found": 0, "failed": 0, "pending": 2},
        "inventory": [],
    }
    assert cells((folder / "inventory.csv").read_text()) == [COLUMNS]
    assert rows(folder / MODULES) == []
    assert verify_run(folder) == []


@pytest.mark.parametrize("name", ["it's [odd]*?", "ünï 😀", 'quo"te', "a,b;c"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = every_status(tmp_path / name).folder
    assert verify_run(folder) == []
    assert read_manifest(folder).devices.ok == 4


def test_the_longest_line_that_a_device_may_have_is_read(tmp_path: Path) -> None:
    version = "\0" * (MAX_CHARACTERS // MAX_MODULES - len("m4999"))
    longest = ok(named(0), *((f"m{number}", version) for number in range(MAX_MODULES)))
    folder = build(tmp_path / "run", [named(0)], [longest]).folder
    assert (folder / RESULTS).stat().st_size > 600_000
    assert len(rows(folder / MODULES)) == MAX_MODULES
    assert verify_run(folder) == []


def test_a_blocked_file_is_an_unwritable_run_and_leaves_no_temporary_folder(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0)], []).folder
    (folder / DEVICES).mkdir()
    with pytest.raises(RunNotWritableError, match="cannot be sealed: Is a directory"):
        seal_run(folder)
    assert not (folder / ".sealing").exists()


@pytest.mark.parametrize("content", [b"", b"PAR1 not quite"])
def test_a_broken_fleet_file_is_reported_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    folder = running(tmp_path / "run", [named(0)], []).folder
    (folder / FLEET).write_bytes(content)
    with pytest.raises(RunNotWritableError, match="cannot be sealed"):
        seal_run(folder)
    assert not (folder / ".sealing").exists()
