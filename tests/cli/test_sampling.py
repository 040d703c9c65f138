"""Policies and comparisons of samples on the command line: intervals, and only significant changes."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Auditor
from tests.runs.run_folders import named, ok
from tests.runs.sampled_runs import carried_run, sampled_run

FLEET = [named(number) for number in range(300)]
RULES = '[[rule]]\nname = "new"\nminimum = "2.0"\nseverity = "{severity}"\n'


def drawn(folder: Path, first: int, rolled_out: int) -> Path:
    """A sample of 100 devices from a place on, so many of them with the newer version."""
    part = FLEET[first : first + 100]
    outcomes = [ok(device, ("ble", "2.0" if at < rolled_out else "1.0")) for at, device in enumerate(part)]
    return sampled_run(folder, FLEET, part, outcomes).folder


@pytest.fixture
def nights(tmp_path: Path) -> tuple[Path, Path]:
    """Two samples that have ten devices in common; in the later one more devices run the newer version."""
    return drawn(tmp_path / "old", 0, 5), drawn(tmp_path / "new", 90, 60)


@pytest.mark.slow
def test_shares_are_printed_and_summarized(auditor: Auditor, nights: tuple[Path, Path]) -> None:
    done = auditor("diff", *nights)
    assert done.returncode == 0, done.stderr
    header, first, *_ = done.stdout.splitlines()
    assert header.split() == ["product", "module", "version", "before", "after", "change", "verdict"]
    assert first.split()[:4] == ["p1", "ble", "1.0", "95.0%"] or first.split()[:4] == ["p1", "ble", "2.0", "5.0%"]
    assert "of 4 shares 4 changed (2 grew, 2 shrank), 0 did not change significantly (95%)" in done.stderr
    assert "10 devices compared, 290 unsampled" in done.stderr
    document = json.loads(auditor("diff", *nights, "--format", "json").stdout)
    assert [row["verdict"] for row in document["shares"]].count("grew") == 2


@pytest.mark.parametrize(
    ("fail_on", "code"), [("grew", 4), ("downgraded,shrank", 4), ("downgraded", 2), ("left,removed", 2), ("odd", 2)]
)
def test_between_samples_shares_can_fail_and_devices_are_refused(
    auditor: Auditor, nights: tuple[Path, Path], fail_on: str, code: int
) -> None:
    done = auditor("diff", *nights, "--fail-on", fail_on)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if fail_on == "downgraded":
        assert "use grew and shrank" in done.stderr


def test_insignificant_changes_do_not_fail(auditor: Auditor, tmp_path: Path, nights: tuple[Path, Path]) -> None:
    done = auditor("diff", nights[1], drawn(tmp_path / "again", 200, 55), "--fail-on", "grew,shrank")
    assert done.returncode == 0, done.stderr
    assert "of 4 shares 0 changed" in done.stderr


def test_a_comparison_counts_carried_results(auditor: Auditor, tmp_path: Path) -> None:
    fleet = FLEET[:3]
    old = carried_run(tmp_path / "old", fleet, [ok(device, ("ble", "1")) for device in fleet], []).folder
    since = [(device, "ble", "1") for device in fleet[:2]]
    new = carried_run(tmp_path / "new", fleet, [ok(fleet[2], ("ble", "2"))], since).folder
    done = auditor("diff", old, new)
    assert "2 of 3 compared devices have carried results: the same" in done.stderr
    refused = auditor("diff", old, new, "--fail-on", "grew")
    assert refused.returncode == 2
    assert "only samples have it" in refused.stderr


def test_a_policy_on_a_sample_estimates_the_violating_share(
    auditor: Auditor, tmp_path: Path, nights: tuple[Path, Path]
) -> None:
    (tmp_path / "rules.toml").write_text(RULES.format(severity="error"))
    done = auditor("policy", nights[1], "rules.toml")
    assert done.returncode == 4
    assert "40 of 100 sampled devices violate it: 40.0% of the devices in scope (" in done.stdout
    assert "200 are not sampled" in done.stdout
    assert "on a sample of 100 of 300 devices" in done.stderr
