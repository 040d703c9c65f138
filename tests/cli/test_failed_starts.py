"""`auditor status` after starts that failed before there was a run: when, why, and what to do."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.runs.locking import RunLock
from auditor.runs.manifest import read_manifest, write_manifest
from tests.cli.conftest import SECRET, Auditor, Platform, settings_file

KEY = {"CANARY": SECRET}
"""A run ends with 1, since the platform has none of the devices."""


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


FAULTS = {
    "misspelt key": (replaced("give_up_after", "give_up_afer"), "did you mean give_up_after?"),
    "wrong type": (replaced("timeout = 2.0", 'timeout = "soon"'), "timeout"),
    "no TOML": (replaced('name = "eu"', "name = eu"), "a text needs quotes"),
    "missing fleet": (
        lambda path: (path.parent / "fleet.csv").unlink(),
        'fleet.csv: cannot be read: No such file or directory; it is the fleet of account "eu"',
    ),
    "missing rules": (
        lambda path: path.write_text('policy = { file = "rulez.toml" }\n' + path.read_text()),
        "policy: ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_status_says_why_the_last_start_failed_until_a_run_starts(
    auditor: Auditor, tmp_path: Path, platform: Platform, fault: str
) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    text, fleet = settings.read_text(), (tmp_path / "fleet.csv").read_text()
    assert auditor("run", settings.name, env=KEY).returncode == 1
    assert "failed start" not in auditor("status").stdout
    spoil, sentence = FAULTS[fault]
    spoil(settings)
    failed = auditor("run", settings.name, env=KEY)
    assert failed.returncode == 2
    assert sentence in failed.stderr
    lines = auditor("status").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("failed start: "))
    assert ", exit 2: " in line
    assert sentence in line
    at = lines.index("next: no run has started since; correct what is wrong, and check the settings")
    assert lines[at + 1] == f"  auditor check {settings}"
    assert lines[at + 2].startswith("then: "), "the run before is no success"
    settings.write_text(text)
    (tmp_path / "fleet.csv").write_text(fleet)
    assert auditor("run", settings.name, env=KEY).returncode == 1
    assert "failed start" not in auditor("status").stdout


def test_status_says_why_the_first_start_failed(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    assert auditor("status").returncode == 2
    replaced("give_up_after", "give_up_afer")(settings)
    assert auditor("run", settings.name, env=KEY).returncode == 2
    first, *steps = auditor("status").stdout.splitlines()
    assert first.startswith("failed start: ")
    assert first.endswith("give_up_afer is not a setting; did you mean give_up_after?")
    assert steps[-1] == f"  auditor check {settings}"


def test_runs_that_were_copied_have_the_failed_start_of_their_directory(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    (tmp_path / "old").mkdir()
    settings = settings_file(tmp_path / "old", platform.endpoint)
    assert auditor("run", settings, env=KEY).returncode == 1
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new" / "fleet.csv").unlink()
    assert auditor("run", "new/settings.toml", env=KEY).returncode == 2
    assert "failed start: " in auditor("status", "new/audits").stdout
    assert "failed start: " not in auditor("status", "old/audits").stdout


def test_what_is_no_failed_start_is_not_remembered(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    assert auditor("run", settings.name, env=KEY).returncode == 1
    (tmp_path / "others").mkdir()
    others = settings_file(tmp_path / "others", platform.endpoint)
    replaced("timeout", "timeoutt")(others)
    assert auditor("run", others, env=KEY).returncode == 2, "other settings"
    assert auditor("run", settings.name, "--limit", 0, env=KEY).returncode == 2, "a trial"
    assert auditor("run", settings.name, "--for", "banana", env=KEY).returncode == 2, "a wrong flag"
    (run,) = (tmp_path / "audits").iterdir()
    manifest = read_manifest(run)
    write_manifest(run, replace(manifest, state="running", finished_at=None))
    with RunLock(run):
        assert auditor("run", settings.name, env=KEY).returncode == 2, "another process writes the run"
    write_manifest(run, manifest)
    assert auditor("run", settings.name, env={"CANARY": "wrong"}).returncode == 3, "a run, which says so itself"
    assert "failed start" not in auditor("status").stdout
    assert "exit 3 (refused_account)" in auditor("status").stdout
    assert auditor("run", settings.name, env={"CANARY": ""}).returncode == 2
    assert "access_key_secret: the environment variable CANARY is not set" in auditor("status").stdout


def test_a_directory_that_others_can_write_is_not_read(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    assert auditor("run", settings.name, env=KEY | state).returncode == 1
    (tmp_path / "fleet.csv").unlink()
    assert auditor("run", settings.name, env=KEY | state).returncode == 2
    assert "failed start" in auditor("status", env=state).stdout
    (folder,) = (tmp_path / "state").rglob("failed-starts")
    (record,) = folder.iterdir()
    record.write_text("{}")
    assert auditor("status", env=state).returncode == 0, "a damaged record is none"
    os.truncate(record, 0)
    assert "failed start" not in auditor("status", env=state).stdout
