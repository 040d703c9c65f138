"""The page of a night without answers: the reason, what to do, the last success, and no numbers that do not exist."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from auditor.models import Device
from auditor.policy.loader import parse_policy
from auditor.policy.model import Policy
from auditor.report.attention import list_attention
from auditor.report.builder import build_report
from auditor.report.model import Report
from auditor.report.render import render_html
from auditor.report.tiles import list_tiles, read_verdict
from auditor.runs.manifest import AccountInfo, DiscoveryInfo
from auditor.runs.selection_info import ExitReason
from tests.report.pages import parse_html
from tests.runs.run_folders import build, edit_manifest, failed, named, ok, running

NOW = datetime(2026, 11, 24, 5, tzinfo=UTC)
REFUSED = ExitReason("refused_account", 'account "main": its devices cannot be listed: the platform refuses the key')
RULES = [
    {"name": "rollouts are done", "newest": "95%"},
    {"name": "few versions in use", "max_versions": 5},
    {"name": "results are recent", "max_age": "36h"},
]


def build_nights(directory: Path, fleet: Sequence[Device] = (), *, earlier: int = 2) -> Path:
    """Build successful nights and a last one that was aborted before any answer; return its folder."""
    for night in range(earlier):
        devices = [named(n, account="main") for n in range(6)]
        folder = build(
            directory / "audits" / f"night{night}", devices, [ok(each, ("ble", "1")) for each in devices]
        ).folder
        began = f"2026-11-2{night}T02:00:00.000Z"
        edit_manifest(folder, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
    last = build(directory / "audits" / "last-night", fleet, []).folder
    edit_manifest(
        last,
        lambda manifest: replace(
            manifest,
            started_at="2026-11-24T02:00:00.000Z",
            state="aborted",
            exit_code=3,
            exit_reason=REFUSED,
            error=REFUSED.message,
            settings_file="/etc/auditor/nightly.toml",
            settings={"policy": {"file": "/etc/auditor/rules.toml"}},
            accounts=(AccountInfo("main", "https://example.com/", "tuya", 10),),
            discovery=() if fleet else (DiscoveryInfo("main"),),
        ),
    )
    return last


def report_of(folder: Path) -> Report:
    return build_report(folder, now=NOW, policy=Policy(parse_policy({"rule": RULES}, "rules.toml"), "rules.toml"))


@pytest.mark.parametrize("devices", [0, 4], ids=["nothing was listed", "nothing was answered"])
def test_the_reason_comes_first_with_what_to_do_and_the_last_success(tmp_path: Path, devices: int) -> None:
    folder = build_nights(tmp_path, [named(n, account="main") for n in range(devices)])
    report = report_of(folder)
    (item,) = list_attention(report)
    assert (item.title, item.evidence) == ("The audit was aborted", REFUSED.message)
    assert item.cases == (
        "Next: correct the key or the permission, and continue the run",
        "Last success: night1, 3 days old",
    )
    assert [each.line for each in item.commands] == [
        "auditor check nightly.toml",
        f"auditor resume {folder}",
        f"auditor inventory {folder.parent}/night1",
    ]
    page = parse_html(render_html(report))
    assert "/etc/auditor" not in page.text, "a page may be sent to others"
    silence = "no device has an answer" if devices else "no device was listed"
    assert f"The audit was aborted: {silence}." in page.text
    assert f"3 rules are undecided: {silence}." in page.text


def test_a_page_without_answers_has_no_numbers_and_tables_of_nothing(tmp_path: Path) -> None:
    report = report_of(build_nights(tmp_path))
    assert list_tiles(report) == []
    assert read_verdict(report).sentence == "no device was listed"
    page = parse_html(render_html(report))
    assert "check its patterns" not in page.text
    assert [tag for tag, _ in page.tags if tag == "table"] == []
    for words in ("0 of 0", "0 devices", "No device reported a module", "No device failed", "0 rows", "none violated"):
        assert words not in page.text, words
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {str(link)[1:] for link in links if str(link).startswith("#")} <= ids


def test_patterns_that_match_nothing_are_named_if_devices_answered(tmp_path: Path) -> None:
    folder = build_nights(tmp_path, earlier=1).parent / "night0"
    policy = Policy(parse_policy({"rule": [{"name": "typo", "module": "wfi", "minimum": "2"}]}, "r.toml"), "r.toml")
    assert "check its patterns" in render_html(build_report(folder, now=NOW, policy=policy))


def test_without_an_earlier_success_the_page_says_so(tmp_path: Path) -> None:
    (item,) = list_attention(report_of(build_nights(tmp_path, earlier=0)))
    assert item.cases[-1] == "Last success: none in this directory"
    assert [each.line.split()[1] for each in item.commands] == ["check", "resume"]


def test_a_killed_run_without_answers_names_the_last_success(tmp_path: Path) -> None:
    folder = build_nights(tmp_path)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at="2026-11-22T02:00:00.000Z"))
    killed = running(tmp_path / "audits" / "killed", [named(0, account="main")], []).folder
    edit_manifest(killed, lambda manifest: replace(manifest, started_at="2026-11-24T02:00:00.000Z"))
    (item,) = (each for each in list_attention(report_of(killed)) if each.title == "The audit was killed")
    assert (item.evidence, item.cases) == ("No device has an answer", ("Last success: night1, 3 days old",))
    assert item.commands[-1].line == f"auditor inventory {killed.parent}/night1"


def test_accounts_that_fail_for_different_reasons_are_listed(tmp_path: Path) -> None:
    fleet = [named(n, account="main" if n % 2 else "us") for n in range(8)]
    folder = build(tmp_path / "audits" / "now", fleet, [failed(each, f"Code{each.account}") for each in fleet]).folder
    edit_manifest(folder, lambda manifest: replace(manifest, state="aborted", exit_reason=REFUSED))
    found = [item.title for item in list_attention(build_report(folder, now=NOW))]
    assert {"Account us: none of its 4 devices answered", "Account main: none of its 4 devices answered"} < set(found)
