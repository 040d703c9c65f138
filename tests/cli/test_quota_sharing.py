"""Several concurrent audits of one account, each in a process of its own."""

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SECRET, Auditor, Platform, StartPlatform
from tests.forked import CapturedCommand


def settings_at(folder: Path, endpoint: str, fleet: Path, per_second: float, **more: str) -> Path:
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    lines = [f"{key} = {value}" for key, value in more.items()]
    (folder / "settings.toml").write_text(
        "\n".join(lines)
        + f"""
[[account]]
name = "shared"
endpoint = "{endpoint}"
access_key_id = "simulated-key"
access_key_secret = {{ file = "secret" }}
calls_per_second = {per_second}
fleet = {{ file = "{fleet}" }}
"""
    )
    return folder / "settings.toml"


def fleet_of(platform: Platform) -> Path:
    fleet: str = tomllib.loads(platform.settings.read_text())["account"][0]["fleet"]["file"]
    return platform.settings.parent / fleet


def started(settings: Path, *options: object) -> CapturedCommand:
    out = settings.parent / "runs"
    return CapturedCommand("run", settings, "--out", out, "--log-level", "info", *options, cwd=settings.parent)


def ended(process: CapturedCommand) -> tuple[dict[str, Any], str]:
    """The manifest of a run that ended well, and what was said."""
    done = process.result()
    assert done.returncode == 0, done.stderr
    return json.loads(Path(done.stdout.strip(), "run.json").read_text()), done.stderr


FEW = 2
"""Refusals by a strict second that a busy machine may bring about, whose processes are late."""


def test_two_audits_of_one_account_share_its_quota(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 120, "--per-second", 50)
    fleet = fleet_of(platform)
    both = [settings_at(tmp_path / name, platform.endpoint, fleet, 50) for name in ("nightly", "export")]
    began = time.monotonic()
    results = [ended(process) for process in [started(settings) for settings in both]]
    took = time.monotonic() - began
    assert sum(manifest["requests"]["throttled"] for manifest, _ in results) <= FEW
    sent = sum(manifest["requests"]["sent"] for manifest, _ in results)
    assert took >= sent / 50 - 0.5
    assert all(manifest["rate"]["achieved"] < 35 for manifest, _ in results)
    assert all("the quota is shared with another audit" in said for _, said in results)


@pytest.mark.slow
def test_an_audit_with_priority_ends_long_before_the_other(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 200, "--per-second", 50)
    fleet = fleet_of(platform)
    nightly = started(settings_at(tmp_path / "nightly", platform.endpoint, fleet, 50))
    urgent = started(settings_at(tmp_path / "export", platform.endpoint, fleet, 50), "--priority")
    first, _ = ended(urgent)
    assert nightly.command.poll() is None
    second, _ = ended(nightly)
    assert first["requests"]["throttled"] + second["requests"]["throttled"] <= FEW
    assert first["rate"]["achieved"] >= 35
    assert second["rate"]["achieved"] <= 30


@pytest.mark.slow
def test_audits_without_quota_sharing_are_throttled(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 200, "--per-second", 50)
    fleet = fleet_of(platform)
    both = [
        settings_at(tmp_path / name, platform.endpoint, fleet, 50, quota_sharing='"none"')
        for name in ("nightly", "export")
    ]
    results = [ended(process) for process in [started(settings) for settings in both]]
    assert any(manifest["requests"]["throttled"] for manifest, _ in results)
    assert not any("shared with another audit" in said for _, said in results)


@pytest.mark.slow
def test_a_relative_quota_directory_works_from_wherever_a_run_is_resumed(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 30, "--per-second", 0)
    settings = settings_at(
        tmp_path / "here", platform.endpoint, fleet_of(platform), 10, quota_sharing='{ directory = "both" }'
    )
    (settings.parent / "both").mkdir()
    done = auditor("run", settings, "--out", settings.parent / "runs", "--for", "2s")
    assert done.returncode == 1, done.stderr
    resumed = auditor("resume", done.stdout.strip())
    assert resumed.returncode == 0, resumed.stderr
    assert len(list((settings.parent / "both").iterdir())) == 1


def test_an_unwritable_quota_directory_is_refused_before_the_audit(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 30, "--per-second", 0)
    settings = settings_at(
        tmp_path / "here", platform.endpoint, fleet_of(platform), 50, quota_sharing='{ directory = "/proc" }'
    )
    done = auditor("run", settings, "--out", settings.parent / "runs")
    assert done.returncode == 2
    assert "quota_sharing: /proc: cannot be written" in done.stderr
    assert not (settings.parent / "runs").exists()
