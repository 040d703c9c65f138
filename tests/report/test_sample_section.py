"""Reports of samples: changes in shares, and verdicts that distinguish unsampled from unseen devices."""

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.policy.loader import parse_policy
from auditor.policy.model import Policy
from auditor.report.render import write_report
from tests.runs.run_folders import edit_manifest, named, ok
from tests.runs.sampled_runs import sampled_run

FLEET = [named(number) for number in range(300)]
RULES = Policy(
    parse_policy({"rule": [{"name": "new", "minimum": "2.0", "severity": "error"}]}, "rules.toml"), "rules.toml"
)


def build_sample(folder: Path, day: int, first: int, rolled_out: int) -> Path:
    sampled = FLEET[first : first + 100]
    outcomes = [ok(device, ("<ble>", "2.0" if at < rolled_out else "1.0")) for at, device in enumerate(sampled)]
    sampled_run(folder, FLEET, sampled, outcomes)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def test_comparison_of_samples_reports_shares_and_no_devices(tmp_path: Path) -> None:
    build_sample(tmp_path / "1", 21, 0, 5)
    page = write_report(build_sample(tmp_path / "2", 22, 90, 60), tmp_path / "page.html").read_text()
    assert 'data-figure="shares.grew" data-value="2"' in page
    assert 'data-figure="shares.not_significant" data-value="0"' in page
    assert "&lt;ble&gt;" in page
    assert "drift.compared" not in page
    assert "drift.left" not in page


@pytest.mark.slow
def test_unsampled_devices_are_counted_separately_from_unseen_devices(tmp_path: Path) -> None:
    page = write_report(build_sample(tmp_path / "1", 21, 0, 60), tmp_path / "page.html", policy=RULES).read_text()
    assert 'data-figure="rule.new.unsampled" data-value="200"' in page
    assert "rule.new.not_seen" not in page, "zero is hidden"
    assert "40 of 100 sampled devices violate it" in page
