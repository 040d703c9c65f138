"""What needs attention: by severity, with the command that helps, and nothing on a night without problems."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from auditor.cli.app import main
from auditor.models import Outcome
from auditor.policy.loader import load_policy, parse_policy
from auditor.policy.model import Policy
from auditor.report.attention import ShellCommand, list_attention
from auditor.report.builder import build_report
from auditor.report.model import Report
from auditor.report.render import render_html
from auditor.report.tiles import list_tiles, read_verdict
from auditor.runs.folder import MODULES
from auditor.runs.locking import RunLock
from auditor.runs.manifest import State
from auditor.runs.selection_info import ExitReason
from tests.report.pages import parse_html
from tests.runs.run_folders import build, edit_manifest, failed, named, ok, running

NOW = datetime(2026, 11, 24, 5, tzinfo=UTC)
FLEET = [named(n, product=f"p{n % 4}", account="eu" if n % 2 else "us") for n in range(40)]


def answer(night: int, *, back: bool = False) -> list[Outcome]:
    """Return the answers of a night: a rollout that is done, and one that grows by a fifth each night."""
    grown = 2 if back else 8 * (night + 1)
    return [
        ok(device, ("wifi", "2.0"), ("ble", "1.1" if n < grown else "1.0")) for n, device in enumerate(FLEET)
    ]  # fmt: skip


def nights(directory: Path, *last: Outcome, state: State | None = None, **changes: object) -> Path:
    """Build four good nights and a last one; return its folder."""
    for night in range(5):
        outcomes: Sequence[Outcome] = answer(night) if night < 4 or not last else last
        folder = directory / "audits" / f"night{night}"
        (running if state == "running" and night == 4 else build)(folder, FLEET, outcomes)
        began = f"2026-11-2{night}T02:00:00.000Z"
        edit_manifest(folder, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
    if changes or state:
        edit_manifest(folder, lambda m: replace(m, **changes, **({"state": state} if state else {})))  # type: ignore[arg-type]
    return folder


def titles(report: Report) -> list[tuple[str, str]]:
    return [(item.severity, item.title) for item in list_attention(report)]


@pytest.mark.slow
def test_good_night_needs_no_attention(tmp_path: Path) -> None:
    report = build_report(nights(tmp_path), now=NOW)
    assert titles(report) == []
    assert read_verdict(report).state == "complete"
    text = parse_html(render_html(report)).text
    assert "Nothing needs attention" in text
    assert "no rollout is stalled or rolled back" in text
    assert "downgraded" not in text, "zero is hidden"


@pytest.mark.slow
def test_rollback_is_first_and_names_the_worst_and_the_command(tmp_path: Path) -> None:
    folder = nights(tmp_path, *answer(4, back=True))
    report = build_report(folder, now=NOW)
    first = list_attention(report)[0]
    assert (first.severity, first.title, first.unit) == (
        "error",
        "4 rollouts were rolled back",
        "installed modules behind",
    )
    assert first.number == 38
    assert first.evidence == "30 installed modules were downgraded since 23 Nov"
    assert len(first.cases) == 3
    assert all(case.endswith(("%", "0%")) and "ble 1.1: " in case and " → " in case for case in first.cases)
    assert first.commands[0].line == f"auditor diff {folder.parent}/night3 {folder} --changed=downgraded"


def test_account_that_was_refused_is_first_with_the_way_back(tmp_path: Path) -> None:
    reason = ExitReason("refused_account", 'account "us": the platform refused the access key')
    answers = [each for each in answer(4) if each.device.account == "eu"]
    folder = nights(tmp_path, *answers, exit_reason=reason, settings_file="/etc/auditor/nightly.toml")
    report = build_report(folder, now=NOW)
    first = list_attention(report)[0]
    assert first.title == "Account us: none of its 20 devices answered"
    assert first.evidence == f"{reason.message}. 4 modules of its products are unknown in this run"
    assert [each.line for each in first.commands] == [
        "auditor check nightly.toml --account=us",
        f"auditor resume {folder}",
    ]
    assert [title for _, title in titles(report) if "p0" in title or "p2" in title or "unknown" in title] == []
    assert report.rollouts.unknown_by_account == {"us": 4}
    assert read_verdict(report).tone == "bad"


def test_product_and_violated_rules_are_ranked(tmp_path: Path) -> None:
    last = [failed(each.device) if each.device.product_key == "p3" else each for each in answer(4)]
    folder = nights(tmp_path, *last, max_failed="50%")
    rules = [
        {"name": "old", "deny": ["1.0"], "severity": "note"},
        {"name": "new", "module": "wifi", "minimum": "3.0", "severity": "error"},
    ]
    report = build_report(folder, now=NOW, policy=Policy(parse_policy({"rule": rules}, "rules.toml"), "rules.toml"))
    found = titles(report)
    assert found[:2] == [("error", "new (error)"), ("error", "Too many devices have no answer")]
    assert ("warning", "p3: 10 of 10 devices have no answer") in found
    assert ("warning", "2 modules are unknown in this run") in found
    assert [severity for severity, _ in found] == sorted((s for s, _ in found), key=["error", "warning", "note"].index)
    tolerated = nights(tmp_path / "tolerated", *last, state="within_tolerance", max_failed="50%")
    lenient = build_report(tolerated, now=NOW)
    assert ("note", "p3: 10 of 10 devices have no answer") in titles(lenient)
    assert read_verdict(lenient).state == "complete, failures within max_failed"


def test_the_product_that_lacks_the_most_answers_is_among_many_small_ones(tmp_path: Path) -> None:
    small = [named(n, product=f"small{n}") for n in range(9)]
    large = [named(100 + n, product="large") for n in range(40)]
    rest = [named(200 + n, product="rest") for n in range(60)]
    answers: list[Outcome] = [failed(device) for device in [*small, *large[:10]]]
    answers += [ok(device, ("ble", "1")) for device in [*large[10:], *rest]]
    folder = build(tmp_path / "run", [*small, *large, *rest], answers).folder
    report = build_report(folder, now=datetime(2026, 11, 22, 5, tzinfo=UTC))
    assert report.coverage.products[0].product_key == "large"
    assert ("warning", "large: 10 of 40 devices have no answer") in titles(report)


def test_products_of_a_failing_account_do_not_hide_another_one(tmp_path: Path) -> None:
    gone = [named(n, account="us", product=f"gone{n % 9}") for n in range(90)]
    fleet = [*gone, *(named(100 + n, account="eu", product="worse") for n in range(40))]
    answers: list[Outcome] = [failed(device) for device in fleet[:94]]
    answers += [ok(device, ("ble", "1")) for device in fleet[94:]]
    report = build_report(build(tmp_path / "run", fleet, answers).folder, now=datetime(2026, 11, 22, 5, tzinfo=UTC))
    found = [title for _, title in titles(report) if "worse" in title or "gone" in title]
    assert found == ["worse: 4 of 40 devices have no answer"]
    assert len(report.coverage.products) == 9


def test_the_failing_account_is_among_many_large_ones(tmp_path: Path) -> None:
    fleet = [named(n, account=f"a{n % 14}", product=f"p{n % 14}") for n in range(5 * 14)]
    fleet += [named(100 + n, account="small", product="p") for n in range(3)]
    answers = [failed(each) if each.account == "small" else ok(each, ("ble", "1")) for each in fleet]
    report = build_report(build(tmp_path / "run", fleet, answers).folder, now=datetime(2026, 11, 22, 5, tzinfo=UTC))
    assert "Account small: none of its 3 devices answered" in [title for _, title in titles(report)]


def test_run_in_progress_has_no_failing_accounts_and_products(tmp_path: Path) -> None:
    folder = nights(tmp_path, *answer(4)[:3], state="running")
    with RunLock(folder):
        report = build_report(folder, now=NOW)
    assert titles(report) == [("warning", "The audit is in progress")]
    assert list_attention(report)[0].commands[0].line == f"auditor status {folder}"
    assert "The audit is in progress: these numbers" in render_html(report)


def test_a_killed_run_is_called_so_everywhere_on_the_page(tmp_path: Path) -> None:
    report = build_report(nights(tmp_path, *answer(4)[:3], state="running"), now=NOW)
    assert (report.labels, read_verdict(report).state) == (("killed",), "killed")
    assert titles(report) == [("error", "The audit was killed")]
    page = render_html(report)
    assert "The audit was killed: these numbers" in page
    assert re.search(r"<title>[^<]*\(killed\)</title>", page)
    assert "running" not in re.sub(r"(?s)<style>.*?</style>|<script.*?</script>|running-label", "", page)


def test_a_rule_whose_violations_name_no_device_offers_no_list_of_devices(tmp_path: Path) -> None:
    rules = [
        {"name": "few versions", "module": "ble", "max_versions": 1, "severity": "warning"},
        {"name": "it's 'new'", "module": "ble", "minimum": "1.1", "severity": "warning"},
    ]
    folder = nights(tmp_path, *answer(2))
    policy = Policy(parse_policy({"rule": rules}, "rules.toml"), "rules.toml")
    items = {item.title: item for item in list_attention(build_report(folder, now=NOW, policy=policy))}
    few, new = items["few versions (warning)"], items["it's 'new' (warning)"]
    assert (few.commands, few.unit) == ((), "product modules")
    assert shlex.split(new.commands[0].line) == [
        "auditor", "policy", str(folder), "rules.toml", "--rule=it's 'new'", "--devices",
    ]  # fmt: skip


def test_a_target_that_moved_is_named_beside_the_share(tmp_path: Path) -> None:
    newest = [ok(device, ("wifi", "2.0" if n else "3.0"), ("ble", "1.1")) for n, device in enumerate(FLEET)]
    for last, moved in ((newest, 1), (answer(4), 0)):
        report = build_report(nights(tmp_path / str(moved), *last), now=NOW)
        tile = next(each for each in list_tiles(report) if each.title == "On target")
        (count,) = (each for each in tile.counts_below if each.figure == "targets.moved")
        assert (count.count, count.noun) == (
            moved,
            "target moved since 23 Nov" if moved else "targets moved since 23 Nov",
        )
        assert ("target moved since 23 Nov" in parse_html(render_html(report)).text) == bool(moved)


def test_the_tile_and_the_chart_have_one_share_on_target(tmp_path: Path) -> None:
    last = [
        ok(device, ("wifi", f"{n % 3}.0"), ("odd", "hot" if n % 8 < 4 else "1.0")) for n, device in enumerate(FLEET)
    ]
    report = build_report(nights(tmp_path, *last), now=NOW)
    tile = next(each for each in list_tiles(report) if each.title == "On target")
    text = parse_html(render_html(report)).text
    assert tile.text == "32.5%"
    assert f"on target {tile.text}" in text
    assert "13 of 40 installed modules; 40 more have no target" in text
    assert "share of 40 installed modules" in text
    assert "40 more installed modules have no target" in text
    assert "newest firmware" not in text


def test_modules_that_are_gone_are_not_unknown(tmp_path: Path) -> None:
    last = [ok(device, ("wifi", "2.0")) if n else failed(device) for n, device in enumerate(FLEET)]
    report = build_report(nights(tmp_path, *last, max_failed="50%"), now=NOW)
    assert report.rollouts.unknown == ()


def test_rules_without_a_verdict_are_no_good_news(tmp_path: Path) -> None:
    rules = [{"name": "new", "module": "missing", "minimum": "3.0"}]
    policy = Policy(parse_policy({"rule": rules}, "rules.toml"), "rules.toml")
    report = build_report(nights(tmp_path), now=NOW, policy=policy)
    assert titles(report) == [("warning", "No rule of the policy could be decided")]
    tile = next(each for each in list_tiles(report) if each.title == "Policy")
    assert (tile.text, tile.tone) == ("1 undecided", "warn"), "as the terminal says"
    assert "Nothing needs attention" not in render_html(report)


@pytest.mark.parametrize("state", ["aborted", "running"])
def test_unfinished_audit_is_continued(tmp_path: Path, state: State) -> None:
    folder = nights(tmp_path, *answer(4)[:30], state=state, error="the disk is full" if state == "aborted" else None)
    item = next(item for item in list_attention(build_report(folder, now=NOW)) if "audit" in item.title)
    assert item.severity == "error"
    assert item.commands[0].line == f"auditor resume {folder}"
    assert state != "aborted" or item.evidence == "the disk is full"


def test_a_newer_run_that_failed_is_first(tmp_path: Path) -> None:
    reason = ExitReason("refused_account", "the key is denied")
    newest = nights(tmp_path, state="aborted", exit_code=3, exit_reason=reason)
    (item,) = list_attention(build_report(newest.parent / "night3", now=NOW))
    assert (item.severity, item.title) == ("error", "A newer run is aborted")
    assert item.evidence == "24 Nov 2026, 02:00 UTC: exit 3 (refused_account): the key is denied"
    assert item.commands[0].line == f"auditor status {newest.parent}"
    edit_manifest(newest, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    assert titles(build_report(newest.parent / "night3", now=NOW)) == [], "a trial of a part of the fleet"


def test_a_run_that_a_signal_ended_is_called_interrupted_and_no_account_is_blamed(tmp_path: Path) -> None:
    reason = ExitReason("interrupted", "interrupted by SIGTERM")
    answers = [each for each in answer(4) if each.device.account == "us"][:10]
    folder = nights(tmp_path, *answers, state="partial", exit_code=130, exit_reason=reason)
    (item,) = list_attention(build_report(folder, now=NOW))
    assert (item.severity, item.title, item.number) == ("error", "The audit was interrupted", 30)
    assert [command.purpose for command in item.commands] == ["continue it"]


def test_an_account_that_is_refused_is_named_in_an_interrupted_run(tmp_path: Path) -> None:
    reason = ExitReason("interrupted", "interrupted by SIGTERM")
    answers = [each if each.device.account == "eu" else failed(each.device) for each in answer(4)][:-6]
    folder = nights(tmp_path, *answers, state="partial", exit_code=130, exit_reason=reason)
    found = titles(build_report(folder, now=NOW))
    assert found[0] == ("error", "Account us: none of its 17 queried devices answered")
    assert ("error", "The audit was interrupted") in found


def test_a_newer_run_that_was_killed_is_first_and_one_in_progress_is_not_there(tmp_path: Path) -> None:
    newest = nights(tmp_path, state="running", exit_code=None, exit_reason=None)
    (item,) = list_attention(build_report(newest.parent / "night3", now=NOW))
    assert (item.severity, item.title) == ("error", "A newer run was killed")
    assert item.evidence == "24 Nov 2026, 02:00 UTC: 40 of 40 devices have an answer"
    with RunLock(newest):
        assert titles(build_report(newest.parent / "night3", now=NOW)) == []


def test_changed_files_and_old_data_need_attention(tmp_path: Path) -> None:
    folder = nights(tmp_path)
    (folder / MODULES).write_bytes((folder.parent / "night0" / MODULES).read_bytes())
    report = build_report(folder, now=datetime(2026, 11, 28, tzinfo=UTC))
    found = titles(report)
    assert found[0] == ("error", "Files of this run were changed: do not rely on these numbers")
    assert ("warning", "The data is 3 days old") in found
    assert read_verdict(report).tone == "bad"


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They name files as the report's arguments do, so that they work where the user is."""
    (tmp_path / "our fleet" / "rules").mkdir(parents=True)
    folder = nights(tmp_path / "our fleet", *answer(4, back=True))
    rules_file = tmp_path / "our fleet" / "rules" / "rules.toml"
    rules_file.write_text('[[rule]]\nname = "new"\nmodule = "ble"\nminimum = "1.1"\n')
    for at, run, rules in (
        (tmp_path, folder.relative_to(tmp_path), rules_file.relative_to(tmp_path)),
        (tmp_path, Path("our fleet/audits/last"), rules_file),
        (folder.parent, Path(), Path("../rules/rules.toml")),
        (folder, Path(), Path("../../rules/rules.toml")),
        (folder / "..", folder, rules_file),
    ):
        monkeypatch.chdir(at)
        report = build_report(run, policy=load_policy(rules), now=NOW)
        lines = {each.line for item in list_attention(report) for each in item.commands}
        lines |= {entry["command"] for entry in parse_html(render_html(report)).island["modules"]}
        assert {shlex.split(line)[1] for line in filter(None, lines)} == {"devices", "diff", "policy"}
        for line in filter(None, lines):
            assert main(shlex.split(line)[1:]) in (0, 4), line
        assert "1.0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u202e", "x" * 1_000])
def test_command_that_cannot_be_copied_is_left_out(name: str) -> None:
    assert ShellCommand("list", "auditor devices", (name,)).line == ""
    assert ShellCommand("list", "auditor devices", (), (("--product", name),)).line == ""
    assert ShellCommand("list", "auditor devices", ("it's; rm -rf",)).line == "auditor devices 'it'\"'\"'s; rm -rf'"
