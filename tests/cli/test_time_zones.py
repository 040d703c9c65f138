"""Times of tables in another zone: that of the settings, or with --local-time that of this machine."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from auditor.cli.app import main
from auditor.runs.folder import find_run
from tests.analysis.recorded_runs import write_days
from tests.runs.run_folders import edit_manifest

COMMANDS = {
    "runs": ("runs", "audits"),
    "status": ("status", "audits"),
    "device": ("device", "device0001", "audits"),
    "devices": ("devices", "audits"),
    "diff": ("diff", "audits/last~1", "audits/last"),
    "diff --since": ("diff", "audits", "--since", "last~1"),
    "history": ("history", "audits"),
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    found = write_days(tmp_path / "audits")
    with duckdb.connect() as database:  # the time of an answer is shown if some are of an earlier run
        path = find_run(found) / "devices.parquet"
        database.execute(f"CREATE TABLE rows AS FROM '{path}'")
        database.execute("UPDATE rows SET source = 'carried' WHERE device_name = 'device0000'")
        database.execute(f"COPY rows TO '{path}' (FORMAT parquet)")
    yield found
    monkeypatch.undo()
    time.tzset()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    output = capsys.readouterr()
    return output.out + output.err


def configure_zone(directory: Path, name: object) -> None:
    edit_manifest(find_run(directory), lambda manifest: replace(manifest, settings={"time_zone": name}))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.slow
def test_zone_of_the_settings_or_of_this_machine(
    directory: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    plain = printed(capsys, *command)
    assert "+08:00" not in plain
    assert "-05:00" in printed(capsys, *command, "--local-time")
    configure_zone(directory, "Asia/Shanghai")
    shown = printed(capsys, *command)
    assert "+08:00" in shown
    assert "2026-11-25 02:0" not in shown
    assert "-05:00" in printed(capsys, *command, "--local-time")
    if command[0] != "status":
        for format_ in ("json", "csv"):
            assert main((*command, "--format", format_)) == 0
            assert "+08:00" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Mars/Olympus", "../../../etc/passwd", 8, ["UTC"], "\x1b[2J"])
def test_unknown_zone_of_a_run_is_said_and_means_utc(
    directory: Path, capsys: pytest.CaptureFixture[str], name: object
) -> None:
    configure_zone(directory, name)
    shown = printed(capsys, "status", "audits")
    assert "02:00 UTC" in shown
    assert ("note: times are in UTC: time_zone of the run: " in shown) == isinstance(name, str)
    assert "\x1b" not in shown
