import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.analysis import history as series
from auditor.analysis.history import History, read_history
from auditor.errors import RunFolderError, UsageError
from auditor.models import Outcome, RunWarning, WarningKind
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.runs.folder import INVENTORY_JSON, MODULES
from auditor.runs.manifest import MANIFEST, DeviceCounts, file_info, read_manifest
from auditor.text.formats import TableFormat
from tests.database import connect
from tests.runs.run_folders import HOSTILE, build, by_id, edit_manifest, every_status, failed, named, ok, running

COLUMNS = [
    "started_at", "run", "state", "account", "product_key", "module_name", "module_version", "devices", "share",
]  # fmt: skip


def dated(folder: Path, day: int) -> Path:
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def write_run(directory: Path, day: int, *versions: str, module: str = "ble") -> Path:
    """A run in which as many devices run these versions; "" is one that failed."""
    fleet = [named(number) for number in range(len(versions))]
    outcomes: list[Outcome] = [
        ok(device, (module, version)) if version else failed(device)
        for device, version in zip(fleet, versions, strict=True)
    ]
    return dated(build(directory / f"night-{day}", fleet, outcomes).folder, day)


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes], *, forged: bool = False) -> None:
    """Changes a file of a run; ``forged``: and its digest in the manifest."""
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    if forged:
        facts = file_info(folder / name)
        files = tuple(facts if each.name == name else each for each in read_manifest(folder).files)
        edit_manifest(folder, lambda manifest: replace(manifest, files=files))


def versions(history: History) -> list[tuple[str, str, int, float]]:
    return [(row[1], row[6], row[7], row[8]) for row in history.table]


def test_the_runs_of_a_name_are_ordered_by_start(tmp_path: Path) -> None:
    write_run(tmp_path, 2, "1.0", "2.0")
    write_run(tmp_path, 1, "1.0", "1.0")
    other = write_run(tmp_path, 3, "7")
    edit_manifest(other, lambda manifest: replace(manifest, name="weekly"))
    with read_history(str(tmp_path), name="nightly") as history:
        assert (history.name, [run.folder.name for run in history.runs]) == ("nightly", ["night-1", "night-2"])
        assert history.table.columns == COLUMNS
        assert list(history.table) == [
            ("2026-11-01T02:00:00.000Z", "night-1", "complete", "demo", "p1", "ble", "1.0", 2, 1.0),
            ("2026-11-02T02:00:00.000Z", "night-2", "complete", "demo", "p1", "ble", "1.0", 1, 0.5),
            ("2026-11-02T02:00:00.000Z", "night-2", "complete", "demo", "p1", "ble", "2.0", 1, 0.5),
        ]
        assert history.warnings == ()
        assert all(run.sealed and not run.tampered and run.warnings == () for run in history.runs)
    with read_history(tmp_path) as history:
        assert (history.name, versions(history)) == ("weekly", [("night-3", "7", 1, 1.0)])


def test_the_numbers_of_a_history_are_those_of_its_runs(tmp_path: Path) -> None:
    dated(every_status(tmp_path / "a").folder, 1)
    dated(build(tmp_path / "b", [by_id(0)], [ok(by_id(0), ("ble", "1"))]).folder, 2)
    with read_history(tmp_path) as history:
        rows = list(history.table)
        for point in history.runs:
            with Run(point.folder) as run:
                assert point.devices == run.devices
                expected = list(run.inventory())
            assert [row[3:] for row in rows if row[1] == point.folder.name] == [
                (v.account, v.product_key, v.module_name, v.module_version, v.devices, v.share) for v in expected
            ]
        assert history.runs[0].warnings == history.warnings
        assert history.warnings == (RunWarning("partial", str(tmp_path / "a"), "partial: 2 devices failed, 2 pending"),)


def test_a_limit_a_product_and_a_module_filter_the_history(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        dated(every_status(tmp_path / f"run-{day}").folder, day)
    with read_history(tmp_path, limit=2, criteria=DeviceFilter(product="p1", module="BLE")) as history:
        assert [run.folder.name for run in history.runs] == ["run-2", "run-3"]
        assert versions(history) == [
            (run, version, devices, share)
            for run in ("run-2", "run-3")
            for version, devices, share in (("1.0", 2, 0.666667), ("1.1", 1, 0.333333))
        ]
    unknown = read_history(tmp_path, criteria=DeviceFilter(module="' OR 1"))
    with pytest.raises(UsageError, match="no device reports the module ' OR 1; there is =cmd, ble"), unknown:
        pass


def test_a_module_with_different_spellings_is_one(tmp_path: Path) -> None:
    write_run(tmp_path, 1, "1", module="BLE")
    write_run(tmp_path, 2, "1", module="ble")
    with read_history(tmp_path) as history:
        assert {row[5] for row in history.table} == {"ble"}
        (module,) = history.adoption().modules
        assert module.devices == (1, 1)


def test_a_run_that_is_not_sealed_is_shown_without_versions(tmp_path: Path) -> None:
    write_run(tmp_path, 1, "1.0")
    dated(running(tmp_path / "live", [named(0)], [ok(named(0), ("ble", "2"))]).folder, 2)
    aborted = dated(running(tmp_path / "stopped", [named(0)], []).folder, 3)
    edit_manifest(aborted, lambda manifest: replace(manifest, state="aborted"))
    with read_history(tmp_path) as history:
        assert [(run.state, run.sealed) for run in history.runs] == [
            ("complete", True), ("running", False), ("aborted", False),
        ]  # fmt: skip
        assert history.runs[1].devices == DeviceCounts(ok=1)
        assert history.warnings == (
            RunWarning("partial_runs", "", "2 of 3 runs do not cover the whole fleet (aborted, killed)"),
        )
        (module,) = history.adoption().modules
        assert (module.devices, module.versions[0].shares) == ((1, None, None), (1.0, None, None))


def test_a_module_that_a_failed_run_did_not_read_is_unknown_and_not_zero(tmp_path: Path) -> None:
    eu, us = named(0), named(1, account="us")
    both: list[Outcome] = [ok(eu, ("ble", "1.0")), ok(us, ("ble", "1.0"))]
    answers: list[list[Outcome]] = [both, [both[0], ok(us)], both, [ok(eu, ("ble", "2.0")), failed(us)]]
    for day, outcomes in enumerate(answers, 1):
        dated(build(tmp_path / f"night-{day}", [eu, us], outcomes).folder, day)
    with read_history(tmp_path) as history:
        found = {each.account: each for each in history.adoption().modules}
    assert (found["demo"].devices, found["us"].devices) == ((1, 1, 1, 1), (1, 0, 1, None))
    (line,) = found["us"].versions
    assert line.shares == (1.0, 0.0, 1.0, None)
    assert [each.shares for each in found["demo"].versions] == [(0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0)]


def test_zero_is_that_of_a_run_that_reads_all_modules(tmp_path: Path) -> None:
    device = named(0)
    for day, modules in enumerate(
        ([("ble", "1.0"), ("default", "1.0")], [("default", "1.0")], [("default", "1.0")]), 1
    ):
        dated(build(tmp_path / f"night-{day}", [device], [ok(device, *modules)]).folder, day)
    edit_manifest(tmp_path / "night-3", lambda manifest: replace(manifest, modules=("default",)))
    with read_history(tmp_path) as history:
        first, second = history.adoption(versions=1).modules
    assert (first.module_name, second.module_name) == ("default", "ble"), "what has left comes last"
    assert (first.devices, second.devices) == ((1, 1, 1), (1, 0, None))
    assert [each.shares for each in second.versions] == [(1.0, 0.0, None)]


def test_the_newest_run_that_read_a_module_decides_its_order_and_main_versions(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(4)]
    for day, reported in enumerate((("zb", "ble"), ("ble", "zb"), ()), 1):
        modules = [[reported[:1], reported][number < 3] for number in range(4)]
        outcomes: list[Outcome] = [
            ok(device, *((name, f"{day}.0") for name in names)) if names else failed(device)
            for device, names in zip(fleet, modules, strict=True)
        ]
        dated(build(tmp_path / f"night-{day}", fleet, outcomes).folder, day)
    with read_history(tmp_path) as history:
        first, second = history.adoption(versions=1).modules
    assert (first.module_name, first.devices) == ("ble", (3, 4, None))
    assert (second.module_name, second.devices) == ("zb", (4, 3, None))
    assert [line.module_version for line in first.versions] == ["2.0", None]


def test_complete_runs_with_warnings_are_described_by_their_reasons_and_not_as_complete(tmp_path: Path) -> None:
    first, other, third, _ = (write_run(tmp_path, day, "1.0") for day in range(1, 5))
    for run in (first, third):
        edit_manifest(run, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    edit_manifest(other, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, excluded_accounts=("eu",))))
    outdated = [run_summary("2026-11-05", kind) for kind in ("recheck", "mismatch", "recheck")]
    with read_history(tmp_path) as history:
        assert [warning.detail for warning in history.warnings] == [
            "3 of 4 runs do not cover the whole fleet (some accounts only, the first devices only)"
        ]
        both = [*history.runs, *outdated]
        details = [warning.detail for warning in series.summarize_warnings(both)]
    assert details[1:] == [
        "3 of 7 runs may be inaccurate: carried results are outdated; answers reached the wrong request"
    ]
    assert [each.kind for each in series.summarize_warnings(outdated)] == ["inaccurate_runs"]


def run_summary(started_at: str, kind: WarningKind) -> series.RunSummary:
    """A complete run with a warning."""
    warnings = (RunWarning(kind, "run", "detail"),)
    return series.RunSummary(
        Path("run"),
        "nightly",
        "complete",
        started_at,
        DeviceCounts(ok=1),
        sealed=True,
        warnings=warnings,
        tampered=False,
    )


def test_a_tampered_inventory_is_labelled_and_counted_from_the_parquet_files(tmp_path: Path) -> None:
    write_run(tmp_path, 1, "1.0")
    bad = write_run(tmp_path, 2, "1.0", "2.0", "")
    rewrite(bad, INVENTORY_JSON, lambda old: old.replace(b'"devices":1,', b'"devices":7,'))
    with read_history(tmp_path) as history:
        assert [run.tampered for run in history.runs] == [False, True]
        assert versions(history)[1:] == [("night-2", "1.0", 1, 0.5), ("night-2", "2.0", 1, 0.5)]
        assert history.warnings == history.runs[1].warnings == (
            RunWarning("partial", str(bad), "partial: 1 devices failed, 0 pending"),
            RunWarning(
                "tampered",
                str(bad),
                f"{INVENTORY_JSON} is not the file that was sealed: its versions are counted from {MODULES}",
            ),
        )  # fmt: skip
        assert history.runs[1].devices == DeviceCounts(ok=2, failed=1)


def test_a_run_whose_other_files_changed_is_labelled(tmp_path: Path) -> None:
    size, states = write_run(tmp_path, 1, "1.0"), write_run(tmp_path, 2, "1.0")
    rewrite(size, MODULES, lambda old: old + b"more")
    edit_manifest(states, lambda manifest: replace(manifest, devices=DeviceCounts(ok=9)))
    with read_history(tmp_path) as history:
        assert history.warnings == (
            RunWarning("tampered", str(size), f"{MODULES} is not the file that was sealed (its size differs)"),
            RunWarning("tampered", str(states), "run.json and inventory.json differ in their devices by state"),
        )
        assert [run.devices for run in history.runs] == [DeviceCounts(ok=1)] * 2
        assert all(run.tampered for run in history.runs)


def test_an_unreadable_run_is_labelled_and_the_others_are_read(tmp_path: Path) -> None:
    write_run(tmp_path, 1, "1.0")
    bad = write_run(tmp_path, 2, "1.0")
    (bad / INVENTORY_JSON).unlink()
    (bad / MODULES).write_bytes(b"PAR1 nothing here")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{}")
    with read_history(tmp_path) as history:
        assert versions(history) == [("night-1", "1.0", 1, 1.0)]
        assert [run.sealed for run in history.runs] == [True, False]
        skipped, unknown = history.warnings
        assert skipped.kind == "unreadable"
        assert skipped.detail.startswith(f"run skipped: {tmp_path / 'broken'}")
        assert (unknown.kind, unknown.run) == ("tampered", str(bad))
        assert unknown.detail.startswith(f"{INVENTORY_JSON} is missing, and its versions are unknown: cannot be read")


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "no object": lambda old: b"[1\n]\n",
    "no line breaks": lambda old: old.replace(b"\n", b""),
    "a line less": lambda old: old.strip(),
    "a long version": lambda old: old.replace(b'"1.0"', b'"' + b"x" * 3_000_000 + b'"'),
    "a long head": lambda old: b" " * 3_000_000 + old,
    "not UTF-8": lambda old: old.replace(b'"1.0"', b'"\xff\xfe"'),
    "a control character": lambda old: old.replace(b'"1.0"', b'"\0"'),
    "too large a number": lambda old: old.replace(b'"devices":1,"share"', b'"devices":99999999999999999999,"share"'),
    "a negative number": lambda old: old.replace(b'"devices":1,"share"', b'"devices":-5,"share"'),
    "a share beyond 1": lambda old: old.replace(b'"share":1.0', b'"share":1e300'),
    "a text for a number": lambda old: old.replace(b'"devices":1,"share"', b'"devices":"x","share"'),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_inventory_does_not_affect_other_runs(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    write_run(tmp_path, 1, "1.0")
    rewrite(write_run(tmp_path, 2, "1.0"), INVENTORY_JSON, change, forged=True)
    with read_history(tmp_path) as history:
        assert versions(history) == [("night-1", "1.0", 1, 1.0), ("night-2", "1.0", 1, 1.0)]
        assert [run.tampered for run in history.runs] == [False, True]


def test_a_run_pruned_while_reading_does_not_affect_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_run(tmp_path, day, "1.0") for day in (1, 2, 3)]
    read = series._insert_sealed

    def pruned(database: duckdb.DuckDBPyConnection, files: Sequence[tuple[int, Path]]) -> dict[int, int]:
        (folders[1] / INVENTORY_JSON).unlink()
        (folders[1] / MODULES).unlink()
        return read(database, files)

    monkeypatch.setattr(series, "_insert_sealed", pruned)
    with read_history(tmp_path) as history:
        assert versions(history) == [("night-1", "1.0", 1, 1.0), ("night-3", "1.0", 1, 1.0)]
        assert [run.tampered for run in history.runs] == [False, True, False]
        assert [run.sealed for run in history.runs] == [True, False, True]
        assert history.warnings == (
            RunWarning(
                "tampered",
                str(folders[1]),
                "sealed, but modules.parquet, inventory.json is missing: its versions are unknown",
            ),
        )


def test_a_directory_without_a_sealed_run_has_a_history(tmp_path: Path) -> None:
    folder = running(tmp_path / "live", [named(0)], []).folder
    with read_history(tmp_path) as history:
        assert (list(history.table), history.adoption().modules) == ([], ())
        assert history.warnings == (
            RunWarning("unsealed", str(folder), "killed and not sealed: it has no versions yet"),
        )


@pytest.mark.parametrize("name", ["a[b]*?", "line=3", "it's", "filename=x"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / name, 1, *(version for version in HOSTILE if version))
    with read_history(tmp_path / name) as history:
        assert {row[6] for row in history.table} == {version for version in HOSTILE if version}
        assert history.warnings == ()


def test_a_directory_without_a_history_is_refused_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="contains no run"), read_history(tmp_path):
        pytest.fail("read")
    folder = write_run(tmp_path / "audits", 1, "1")
    with pytest.raises(RunFolderError, match="there are runs named 'nightly'"), read_history(folder.parent, name="odd"):
        pytest.fail("read")
    with pytest.raises(RunFolderError, match="is one run; give the directory"), read_history(folder):
        pytest.fail("read")
    with pytest.raises(UsageError, match="from 1 up"), read_history(folder.parent, limit=0):
        pytest.fail("read")
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(RunFolderError, match="is not a manifest"), read_history(folder.parent):
        pytest.fail("read")


def test_a_history_is_written_in_every_format_with_its_warnings(tmp_path: Path) -> None:
    write_run(tmp_path / "audits", 1, "1.0", "")
    write_run(tmp_path / "audits", 2, "=1+1")
    forms: list[TableFormat] = ["csv", "json", "jsonl", "parquet", "xlsx"]
    with read_history(tmp_path / "audits") as history:
        for form in forms:
            history.table.write(tmp_path / f"out.{form}", form)
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in history.table]
    told = orjson.loads((tmp_path / "out.json").read_bytes())
    assert list(told) == ["schema_version", "name", "runs", "warnings", "rows"]
    assert told["rows"] == rows
    assert told["runs"][0]["devices"] == {"ok": 1, "empty": 0, "not_found": 0, "failed": 1, "pending": 0}
    assert told["warnings"] == told["runs"][0]["warnings"]
    assert "partial: 1 devices failed" in told["warnings"][0]["message"]
    assert [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == rows
    assert "'=1+1" in (tmp_path / "out.csv").read_text()
    with connect() as database:
        table = database.execute("FROM read_parquet(?)", [str(tmp_path / "out.parquet")]).fetchall()
    assert [dict(zip(COLUMNS, row, strict=True)) for row in table] == rows


def test_reading_does_not_change_the_folders(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "audits", 1, "1.0")
    (folder / INVENTORY_JSON).write_text("tampered")
    shutil.copytree(folder, tmp_path / "copy")
    with read_history(tmp_path / "audits") as history:
        assert versions(history) == [("night-1", "1.0", 1, 1.0)]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()
    }


@pytest.mark.slow
def test_a_new_version_of_the_newest_run_is_a_main_version(tmp_path: Path) -> None:
    old = ["a", "b", "c", "d", "e", "f"]
    for day, version in enumerate(old, 1):
        write_run(tmp_path, day, *[version] * 9)
    write_run(tmp_path, 7, *["f"] * 8, "new")
    with read_history(tmp_path) as history:
        (module,) = history.adoption(versions=3).modules
        assert [line.module_version for line in module.versions][:2] == ["f", "new"]
        assert (module.versions[-1].module_version, module.versions[-1].versions) == (None, 4)
        assert module.versions[1].shares == (0.0,) * 6 + (0.111111,)
        assert history.adoption(modules=0).module_count == 1


NIGHTS = st.lists(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["ble", "BLE", "zb"]), st.sampled_from("abcdefg")), max_size=3),
        min_size=1, max_size=8,
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(NIGHTS)
@pytest.mark.slow
def test_adoption_equals_counting_in_plain_python(
    tmp_path_factory: pytest.TempPathFactory, nights: list[list[list[tuple[str, str]]]]
) -> None:
    directory = tmp_path_factory.mktemp("adoption")
    counted: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in nights])
    for at, devices in enumerate(nights):
        answers = [ok(named(number), *modules) for number, modules in enumerate(devices)]
        dated(build(directory / f"n{at}", [named(n) for n in range(len(devices))], answers).folder, at + 1)
        for name, version in (each for modules in devices for each in modules):
            counted[name.lower()][at][version] += 1
    with read_history(directory) as history:
        adoption = history.adoption(versions=2)
    assert {module.module_name.lower() for module in adoption.modules} == set(counted)
    for module in adoption.modules:
        nightly = counted[module.module_name.lower()]
        assert module.devices == tuple(each.total() for each in nightly)
        chief = [line.module_version for line in module.versions if line.module_version is not None]
        others = set().union(*nightly) - set(chief)
        assert len(chief) == min(2, len(chief) + len(others))
        for line in module.versions:
            meant = others if line.module_version is None else {line.module_version}
            expected = tuple(sum(each[version] for version in meant) for each in nightly)
            assert (line.devices, line.versions) == (expected, len(meant))
            assert line.shares == pytest.approx(
                tuple(n / each.total() if n else 0.0 for n, each in zip(expected, nightly, strict=True)), abs=1e-6
            )
        assert any(line.module_version is None for line in module.versions) == bool(others)


def test_a_relative_directory_has_the_history_of_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "audits", 1, "1.0")
    monkeypatch.chdir(tmp_path)
    with read_history("audits") as history:
        assert history.warnings == ()
        assert [each[1:] for each in versions(history)] == [("1.0", 1, 1.0)]
