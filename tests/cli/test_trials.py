"""A trial harms nothing: what others read every day is about the fleet, and a trial does not replace it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.cli.app import main
from auditor.cli.options import resume_from
from auditor.runs.folder import find_run
from auditor.runs.manifest import Manifest, read_manifest, write_manifest
from tests.cli.conftest import Platform
from tests.hooks.receiver import receiving
from tests.runs.run_folders import build, edit_manifest, named, ok

Run = Callable[..., tuple[int, Manifest, list[str]]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; returns its exit code, the manifest of its run, and the lines of its log."""

    def run_command(*arguments: object) -> tuple[int, Manifest, list[str]]:
        code = main(list(map(str, arguments)))
        printed = capfd.readouterr()
        return code, read_manifest(Path(printed.out.strip())), printed.err.splitlines()

    return run_command


@pytest.fixture
def production(platform: Platform) -> Path:
    """Settings with files that others read, and those files as a run before left them."""
    folder = platform.settings.parent
    for name in ("fleet.html", "auditor.prom", "fleet.xlsx"):
        (folder / name).write_text("of the whole fleet")
    path = platform.settings.with_name("nightly.toml")
    report = '[report]\nhtml = "fleet.html"\nexcel = "fleet.xlsx"\nmetrics = "auditor.prom"\n'
    path.write_text(f"{platform.settings.read_text()}\n{report}")
    return path


def replaced(settings: Path) -> list[str]:
    files = [settings.with_name(name) for name in ("auditor.prom", "fleet.html", "fleet.xlsx")]
    return [path.name for path in files if path.read_bytes() != b"of the whole fleet"]


@pytest.mark.parametrize(
    "flags", [["--limit", 5], ["--sample", 5], ["--precision", "20%"], ["--account", "simulated"], ["--out", "other"]]
)
@pytest.mark.slow
def test_a_run_of_a_part_or_elsewhere_replaces_no_file_of_the_whole_fleet(
    run: Run, production: Path, tmp_path: Path, flags: list[object]
) -> None:
    with receiving() as receiver:
        production.write_text(f"{production.read_text()}\n{receiver.toml()}")
        where = [tmp_path / "other" if flag == "other" else flag for flag in flags]
        code, manifest, log = run("run", production, *where)
        assert (code, manifest.trial, replaced(production), receiver.bodies) == (0, True, [], [])
        left_out = "report, Excel file, metrics, messages; --hooks includes it"
        assert f"note: a run with {flags[0]} leaves out what others read every day: {left_out}" in log
        code, manifest, log = run("run", production, *where, "--hooks")
        assert (code, manifest.trial, len(receiver.bodies)) == (0, False, 1)
        assert replaced(production) == ["auditor.prom", "fleet.html", "fleet.xlsx"]
        assert receiver.payload["exit_reason"]["code"] == "success"


def test_a_report_in_the_run_folder_is_written_in_any_case(run: Run, platform: Platform) -> None:
    settings = platform.settings.with_name("own.toml")
    settings.write_text(f"{platform.settings.read_text()}\n[report]\nhtml = true\n")
    code, manifest, log = run("run", settings, "--limit", 5)
    (report,) = settings.parent.parent.rglob("report.html")
    assert (code, manifest.trial, report.read_bytes()[:15]) == (0, True, b"<!doctype html>")
    assert not any("leaves out" in line for line in log)


@pytest.mark.slow
def test_the_last_line_is_the_exit_code_with_its_reason(run: Run, production: Path) -> None:
    code, manifest, log = run("run", production)
    assert (code, manifest.exit_code, manifest.trial) == (0, 0, False)
    assert log[-1] == f"exit 0 (success): all {manifest.fleet.devices} devices have an answer"
    (production.parent / "rules.toml").write_text('[[rule]]\nname = "new"\nmodule = "*"\nminimum = "99999.0"\n')
    production.write_text(f'{production.read_text()}\n[policy]\nfile = "rules.toml"\n')
    code, manifest, log = run("run", production)
    assert (code, manifest.exit_code, manifest.state) == (4, 4, "complete")
    assert log[-1] == "exit 4 (policy_violated): the policy is violated: new"
    metrics = production.with_name("auditor.prom").read_text()
    assert 'auditor_run_exit_reason{reason="policy_violated",run="simulated"} 1.0' in metrics


def test_a_directory_means_its_newest_run_of_the_whole_fleet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fleet = [named(0), named(1)]
    runs = tmp_path / "audits"
    for day, outcomes in ((1, [ok(each, ("ble", "1")) for each in fleet]), (2, [ok(fleet[0], ("ble", "1"))]), (3, [])):
        at = f"2026-11-2{day}T02:00:00.000Z"
        folder = build(runs / f"2026112{day}T020000Z-nightly", fleet[: 1 if day == 3 else 2], outcomes).folder
        write_manifest(folder, replace(read_manifest(folder), started_at=at, finished_at=at))
    edit_manifest(folder, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    assert main(["metrics", str(runs), "-o", str(tmp_path / "auditor.prom")]) == 0
    metrics = (tmp_path / "auditor.prom").read_text()
    assert 'auditor_fleet_devices{run="nightly"} 2.0' in metrics, "not the trial"
    assert 'auditor_run_state{run="nightly",state="partial"} 1.0' in metrics, "last night, though it failed"
    assert main(["report", str(runs), "-o", str(tmp_path / "fleet.html")]) == 0
    note = "reading {}, the newest successful run; 20261123T020000Z-nightly is newer, and is of a part of the fleet"
    assert note.format(runs / "20261121T020000Z-nightly") in capfd.readouterr().err
    assert "20261121T020000Z-nightly" in (tmp_path / "fleet.html").read_text()


@pytest.mark.parametrize(
    ("runs", "resumed"),
    [
        (["whole partial", "trial partial"], 0),
        (["whole partial", "trial complete"], 0),
        (["whole running", "trial running"], 0),
        (["trial partial", "whole aborted"], 1),
        (["whole complete", "trial partial"], 1),
        (["whole within_tolerance", "trial partial"], 1),
        (["whole complete", "trial complete"], 0),
        (["whole partial", "whole complete", "trial complete"], 1),
        (["trial complete", "trial partial"], 1),
        (["whole partial", "whole partial", "trial partial"], 1),
    ],
)
def test_resume_of_a_directory_takes_a_trial_only_if_no_other_run_is_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[str], resumed: int
) -> None:
    folders = []
    for day, (kind, state) in enumerate((each.split() for each in runs), 10):
        folder = build(tmp_path / f"202611{day}T020000Z-nightly", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
        manifest = replace(read_manifest(folder), started_at=f"2026-11-{day}T02:00:00.000Z", trial=kind == "trial")
        write_manifest(folder, replace(manifest, name="nightly", state=state))  # type: ignore[arg-type]
        folders.append(folder)
    assert resume_from(tmp_path) == find_run(tmp_path, "unfinished") == folders[resumed]
    newest = folders[-1]
    note = f"note: resuming {folders[resumed]}; {newest.name} is newer, and is a trial of a part of the fleet\n"
    assert capsys.readouterr().err == ("" if resumed == len(runs) - 1 else note)
    assert resume_from(newest) == newest


@pytest.mark.slow
def test_resume_of_a_directory_continues_the_whole_run(run: Run, production: Path) -> None:
    _, _, _ = run("run", production)
    folder = find_run(production.parent / "audits")
    edit_manifest(folder, lambda manifest: replace(manifest, state="aborted", finished_at=None))
    run("run", production, "--limit", 5)
    code, manifest, log = run("resume", production.parent / "audits")
    assert (code, manifest.state, manifest.trial, manifest.fleet.devices) == (0, "complete", False, 120)
    assert any(line.startswith(f"note: resuming {folder}; ") for line in log)
