"""What a page says of samples: changes in shares, and verdicts that tell what was not drawn from what was not seen."""

from dataclasses import replace
from pathlib import Path

from auditor.policy.loader import rules_from
from auditor.policy.model import Rules
from auditor.report.render import write_report
from tests.runs.run_folders import edit_manifest, named, ok
from tests.runs.sampled_runs import sample

FLEET = [named(number) for number in range(300)]
RULES = Rules(
    rules_from({"rule": [{"name": "new", "minimum": "2.0", "severity": "error"}]}, "rules.toml"), "rules.toml"
)


def night(folder: Path, day: int, first: int, rolled_out: int) -> Path:
    part = FLEET[first : first + 100]
    outcomes = [ok(device, ("<ble>", "2.0" if at < rolled_out else "1.0")) for at, device in enumerate(part)]
    sample(folder, FLEET, part, outcomes)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def test_a_page_tells_of_samples_which_shares_changed_and_of_no_device(tmp_path: Path) -> None:
    night(tmp_path / "1", 21, 0, 5)
    page = write_report(night(tmp_path / "2", 22, 90, 60), tmp_path / "page.html").read_text()
    assert 'data-figure="shares.grew" data-value="2"' in page
    assert 'data-figure="shares.noise" data-value="0"' in page
    assert "&lt;ble&gt;" in page
    assert "drift.compared" not in page
    assert "drift.left" not in page


def test_a_page_counts_what_was_not_drawn_apart_from_what_was_not_seen(tmp_path: Path) -> None:
    page = write_report(night(tmp_path / "1", 21, 0, 60), tmp_path / "page.html", rules=RULES).read_text()
    assert 'data-figure="rule.new.unsampled" data-value="200"' in page
    assert 'data-figure="rule.new.not_seen" data-value="0"' in page
    assert "40 of 100 sampled devices violate it" in page
