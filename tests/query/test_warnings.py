"""Every file that differs from the one that was sealed causes a warning, whichever file is read."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

import auditor
from auditor.errors import RunFolderError
from auditor.models import RunWarning
from auditor.query.snapshot import open_snapshot
from auditor.query.warnings import completeness_warnings, integrity_warnings, recheck_warnings
from auditor.runs.folder import CARRIED, DEVICES, FLEET, MODULES, RESULTS
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, read_manifest
from auditor.runs.selection_info import AccountSelection, GapInfo, Recheck, SelectionInfo
from tests.runs.run_folders import build, edit_manifest, every_status, named, ok, running


@pytest.fixture
def complete_run(tmp_path: Path) -> Path:
    devices = [named(0), named(1)]
    return build(tmp_path / "run", devices, [ok(each, ("ble", "1.0")) for each in devices]).folder


def warnings_of(run: Path, tmp_path: Path) -> tuple[RunWarning, ...]:
    frozen = open_snapshot(run, tmp_path / "work")
    with auditor.Run(run) as opened:
        assert opened.warnings == frozen.warnings
    assert frozen.tampered == bool(frozen.warnings)
    return frozen.warnings


def test_a_complete_run_has_no_warnings(complete_run: Path, tmp_path: Path) -> None:
    assert warnings_of(complete_run, tmp_path) == ()


def test_a_run_within_tolerance_has_no_warnings_unless_more_devices_lack_an_answer(tmp_path: Path) -> None:
    devices = [named(number) for number in range(4)]
    run = build(tmp_path / "run", devices, [ok(each, ("ble", "1.0")) for each in devices[:3]]).folder
    edit_manifest(run, lambda manifest: replace(manifest, state="within_tolerance", max_failed=1))
    assert warnings_of(run, tmp_path) == ()
    assert auditor.verify_run(run) == []
    gap = DiscoveryInfo("demo", "partial", missing=1, gap_count=1, gaps=(GapInfo("p1", 4, 5, 5),))
    edit_manifest(run, lambda manifest: replace(manifest, discovery=(gap,), max_failed="40%"))
    assert warnings_of(run, tmp_path) == ()
    fewer = DeviceCounts(ok=2, pending=2)
    (warning,) = completeness_warnings(run, read_manifest(run), fewer)
    assert warning == RunWarning("incomplete", str(run), "within_tolerance: 0 devices failed, 2 pending")
    edit_manifest(run, lambda manifest: replace(manifest, discovery=(), max_failed=0))
    assert auditor.verify_run(run) == ["run.json: says within_tolerance, but 1 devices failed or are pending"]


@pytest.mark.parametrize("gone", [DEVICES, MODULES])
def test_missing_sealed_files_and_changed_result_lines_are_warned_about(
    complete_run: Path, tmp_path: Path, gone: str
) -> None:
    (complete_run / gone).unlink()
    missing = RunWarning("tampered", str(complete_run), f"{gone} was sealed and is missing")
    assert warnings_of(complete_run, tmp_path) == (missing,)
    (complete_run / RESULTS).write_bytes((complete_run / RESULTS).read_bytes().replace(b'"1.0"', b'"9.9"'))
    changed = RunWarning(
        "tampered", str(complete_run), f"{RESULTS} is not the file that was sealed (its digest differs)"
    )
    assert warnings_of(complete_run, tmp_path) == (missing, changed)


def test_a_replaced_fleet_file_is_warned_about(complete_run: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.parquet"
    duckdb.sql(f"COPY (FROM read_parquet('{complete_run / FLEET}') LIMIT 1) TO '{part}' (FORMAT parquet)")
    part.replace(complete_run / FLEET)
    with auditor.query_run(complete_run, "SELECT count(*) FROM fleet") as answer:
        assert answer.run.warnings == (
            RunWarning("tampered", str(complete_run), f"{FLEET} is not the file that was sealed (its digest differs)"),
        )


def test_a_manifest_without_files_is_warned_about(complete_run: Path, tmp_path: Path) -> None:
    edit_manifest(complete_run, lambda manifest: replace(manifest, files=()))
    assert len(warnings_of(complete_run, tmp_path)) == 2


def test_a_run_pruned_while_it_is_read_raises_run_folder_error(tmp_path: Path) -> None:
    run = every_status(tmp_path / "run").folder
    manifest = auditor.Run(run).manifest
    (run / FLEET).unlink()
    with pytest.raises(RunFolderError, match="cannot be read: No such file"):
        integrity_warnings(run, manifest)


@pytest.mark.parametrize("left", [0, 1])
def test_results_that_were_rotated_away_are_an_error(tmp_path: Path, left: int) -> None:
    fleet = [named(number) for number in range(3)]
    built = running(tmp_path / "run", fleet, [ok(device, ("ble", "1.0")) for device in fleet[:2]])
    edit_manifest(built.folder, lambda manifest: replace(manifest, devices=DeviceCounts(ok=2, pending=1)))
    with auditor.Run(built.folder) as run:
        assert [warning.kind for warning in run.warnings] == ["running"]
    results = built.folder / RESULTS
    lines = results.read_bytes().splitlines(keepends=True)
    results.rename(built.folder / "devices.jsonl.1")
    results.write_bytes(b"".join(lines[:left]))
    counts = rf"run\.json counts 2 answers, and {left} exist"
    advice = r"append it to devices\.jsonl\.1, and rename that to devices\.jsonl, or .*auditor resume"
    for read in (auditor.Run, lambda folder: open_snapshot(folder, tmp_path / "work")):
        with pytest.raises(RunFolderError, match=f"{counts}; {advice}"):
            read(built.folder)
    results.unlink()
    with pytest.raises(RunFolderError, match=r"and 0 exist; append it to devices\.jsonl\.1"):
        auditor.Run(built.folder)
    results.with_name("devices.jsonl.1").rename(results)
    with auditor.Run(built.folder) as run:
        assert run.devices == DeviceCounts(ok=2, pending=1)


def test_carried_results_are_no_lines_of_the_results(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(3)]
    built = running(tmp_path / "run", fleet, [ok(device, ("ble", "1.0")) for device in fleet[:2]])
    results = built.folder / RESULTS
    duckdb.sql(
        f"COPY (SELECT * EXCLUDE attempts FROM read_json('{results}') LIMIT 1) TO '{built.folder / CARRIED}'"
        " (FORMAT parquet)"
    )
    results.write_bytes(results.read_bytes().splitlines(keepends=True)[1])
    edit_manifest(built.folder, lambda manifest: replace(manifest, devices=DeviceCounts(ok=2, pending=1)))
    with auditor.Run(built.folder) as run:
        assert run.devices == DeviceCounts(ok=2, pending=1)
    results.write_bytes(b"")
    with pytest.raises(RunFolderError, match="counts 1 answers, and 0 exist"):
        auditor.Run(built.folder)


@pytest.mark.parametrize(("carried", "warned"), [(90, 1), (0, 0)])
def test_a_wrong_index_is_a_warning_only_where_its_results_are_used(carried: int, warned: int) -> None:
    accounts = (AccountSelection("eu", {"recheck": 10}, carried=carried, unchanged=100),)
    recheck = Recheck(100, 10, 10, 5, 0.5, 0.2, 0.8)
    found = list(recheck_warnings("run", SelectionInfo("index", accounts=accounts, recheck=recheck)))
    assert [warning.kind for warning in found] == ["recheck"] * warned
    assert all("of the results of the search index" in warning.detail for warning in found)
