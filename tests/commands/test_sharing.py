"""Several audits at once on one account, each in a process of its own, as a nightly run and somebody's export are."""

import json
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

from .conftest import SECRET, Platform, StartPlatform, command


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
per_second = {per_second}
fleet = {{ file = "{fleet}" }}
"""
    )
    return folder / "settings.toml"


def fleet_of(platform: Platform) -> Path:
    fleet: str = tomllib.loads(platform.settings.read_text())["account"][0]["fleet"]["file"]
    return platform.settings.parent / fleet


def started(settings: Path, *options: object) -> "subprocess.Popen[str]":
    out = settings.parent / "runs"
    arguments = ("run", settings, "--out", out, "--log-level", "info", *options)
    return subprocess.Popen(command(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    """The manifest of a run that ended well, and what was said."""
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return json.loads(Path(out.strip(), "run.json").read_text()), said


def test_two_audits_of_one_account_are_not_refused_and_end_together(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 120, "--per-second", 50)
    fleet = fleet_of(platform)
    both = [settings_at(tmp_path / name, platform.endpoint, fleet, 50) for name in ("nightly", "export")]
    began = time.monotonic()
    told = [ended(process) for process in [started(settings) for settings in both]]
    took = time.monotonic() - began
    assert [manifest["requests"]["throttled"] for manifest, _ in told] == [0, 0]
    sent = sum(manifest["requests"]["sent"] for manifest, _ in told)
    assert took >= sent / 50 - 0.5
    assert all(manifest["rate"]["achieved"] < 35 for manifest, _ in told)
    assert all("the quota is shared with another audit" in said for _, said in told)


def test_an_audit_with_priority_is_done_long_before_the_other(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 200, "--per-second", 50)
    fleet = fleet_of(platform)
    nightly = started(settings_at(tmp_path / "nightly", platform.endpoint, fleet, 50))
    urgent = started(settings_at(tmp_path / "export", platform.endpoint, fleet, 50), "--priority")
    first, _ = ended(urgent)
    assert nightly.poll() is None
    second, _ = ended(nightly)
    assert (first["requests"]["throttled"], second["requests"]["throttled"]) == (0, 0)
    assert first["rate"]["achieved"] >= 35
    assert second["rate"]["achieved"] <= 30


def test_audits_that_are_told_to_be_alone_run_into_each_other(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 120, "--per-second", 50)
    fleet = fleet_of(platform)
    both = [
        settings_at(tmp_path / name, platform.endpoint, fleet, 50, budget='"alone"') for name in ("nightly", "export")
    ]
    told = [ended(process) for process in [started(settings) for settings in both]]
    assert sum(manifest["requests"]["throttled"] for manifest, _ in told) > 0
