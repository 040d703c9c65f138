"""The page as a file: bounded, reproducible, and with no active content but its own script."""

import base64
import builtins
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jinja2
import pytest

from auditor.analysis.drift import diff_runs
from auditor.errors import RunFolderError, RunNotWritableError, UsageError
from auditor.policy.loader import load_policy
from auditor.report.page import _environment as report_environment
from auditor.report.render import write_report
from auditor.runs.folder import MODULES
from auditor.runs.manifest import State
from auditor.text.extras import describe_extra
from tests.report.fleets import EVIL, build_wide_run
from tests.report.pages import ParsedPage, parse_page
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, failed, named, not_found, ok, running

NOW = datetime(2026, 11, 22, 5, 30, tzinfo=UTC)
SECTIONS = 5
"""Labelled headings of a page with neither history nor policy, and its banner."""

RULES = """
[[rule]]
name = "no 1.0 <b>"
deny = ["1.0"]
[[rule]]
name = "ble is there"
severity = "warning"
module = "ble"
required = true
"""


def build_nightly_runs(directory: Path, states: Sequence[State] = ("complete", "complete", "complete")) -> list[Path]:
    """Build nightly runs of ten devices: each upgrades three more, and a device fails in partial runs."""
    fleet = [named(number) for number in range(10)]
    folders = []
    for night, state in enumerate(states):
        answers = [ok(device, ("ble", "1.1" if n < 3 * night else "1.0")) for n, device in enumerate(fleet[:9])]
        last = failed(fleet[9]) if state == "partial" else ok(fleet[9], ("ble", "0.9"))
        folder = directory / f"night{night}"
        (running if state == "running" else build)(folder, fleet, [*answers, last])
        began = f"2026-11-{20 + night}T02:00:00.000Z"
        edit_manifest(folder, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
        folders.append(folder)
    return folders


def page_of(run: Path, **options: object) -> ParsedPage:
    return parse_page(write_report(run, run.parent / "page.html", now=NOW, **options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_same_run_and_time_give_the_same_bytes(tmp_path: Path) -> None:
    folders = build_nightly_runs(tmp_path / "runs")
    first, second = (write_report(folders[-1], tmp_path / name, now=NOW).read_bytes() for name in ("a", "b"))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "runs"]


def test_content_security_policy_allows_only_own_style_and_script(tmp_path: Path) -> None:
    text = write_report(build_nightly_runs(tmp_path / "runs")[-1], tmp_path / "page.html", now=NOW).read_text()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    assert policy.startswith("default-src 'none'; ")
    for kind in ("style", "script"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy
    assert "http:" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_names_from_devices_are_text(tmp_path: Path) -> None:
    fleet = [*(named(n, product=EVIL, account="<i>") for n in range(len(HOSTILE))), named(99, account="</style>")]
    outcomes = [ok(device, (EVIL, name)) for device, name in zip(fleet, HOSTILE, strict=False)]
    run = build(tmp_path / "runs" / "now", fleet, [*outcomes, failed(fleet[-1], "</script><script>alert(1)</script>")])
    edit_manifest(run.folder, lambda manifest: replace(manifest, name=EVIL, error="<b>"))
    page = page_of(run.folder)
    assert page.unclosed == []
    assert EVIL in page.text
    assert "</script><script>alert(1)</script>" in page.text
    assert [tag for tag, _ in page.tags if tag in {"img", "i", "b"}] == []
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts == ["application/json", None]
    assert {each["name"] for each in page.island["modules"]} == {EVIL}
    assert EVIL in {each["module"] for each in page.island["modules"]}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert all(attributes.get(name) in (None, "data:,") or tag == "a" for name in ("src", "href"))
    assert all(character.isprintable() for row in page.rows for cell in row for character in cell)


@pytest.mark.parametrize(
    ("products", "modules", "versions", "prefix"),
    [(300, 4, 50, "k" * 20), (300, 4, 20, "<&\"'😀" * 20), (1, 2, 2, '"<😀' * 400_000)],
    ids=["a wide fleet", "hostile names", "names larger than a page"],
)
@pytest.mark.slow
def test_page_is_smaller_than_2_mb(tmp_path: Path, products: int, modules: int, versions: int, prefix: str) -> None:
    nightly = range(1 if versions == 50 else 2)  # the widest alone is enough to wait for
    runs = [build_wide_run(tmp_path / f"run{n}", products, modules, versions, prefix=prefix, day=n) for n in nightly]
    page = write_report(runs[-1], tmp_path / "page.html", now=NOW)
    assert page.stat().st_size < 2_000_000
    shown = parse_page(page)
    assert shown.figures["devices.fleet"] == str(products * versions)
    assert int(shown.figures["inventory.rows"]) == products * modules * (versions - 1)
    assert 0 < len(shown.rows) <= 3_000
    assert shown.island["modules"]
    more = int(shown.figures["inventory.rows"]) - len(shown.rows)
    assert f"the other {more:,} are in inventory.csv" in shown.text or more == 0


@pytest.mark.parametrize("state", ["partial", "running", "aborted"])
def test_incomplete_run_is_labelled_in_each_section(tmp_path: Path, state: State) -> None:
    fleet = [named(0), named(1)]
    folder = tmp_path / "runs" / "now"
    (running if state == "running" else build)(folder, fleet, [ok(fleet[0], ("ble", "1"))])
    settings, rules = tmp_path / "settings" / "nightly.toml", tmp_path / "rules.toml"
    rules.write_text(RULES)
    edit_manifest(folder, lambda manifest: replace(manifest, state=state, settings_file=str(settings)))
    later = NOW + timedelta(days=9)  # the data is old
    with_rules = parse_page(write_report(folder, tmp_path / "page.html", now=later, policy=load_policy(rules)))
    page = page_of(folder)
    label = "killed" if state == "running" else state
    labels = [
        attributes for tag, attributes in page.tags if tag == "span" and attributes.get("class") == f"label {label}"
    ]
    assert len(labels) == 1 + SECTIONS
    assert f"({label})" in page.text
    assert f" now: {label}: 0 devices failed, 1 pending" in page.text
    # A page may be sent to others. Commands have the paths of the run and the rules as they were given, and nothing else.
    assert "auditor run nightly.toml" in with_rules.text
    listed = f"auditor policy {folder} {rules} --rule='no 1.0 <b>' --devices"
    for command in (f"auditor resume {folder}", listed):
        assert command in with_rules.text
        with_rules.text = with_rules.text.replace(command, "")
        page.text = page.text.replace(command, "")
    assert str(tmp_path) not in page.text + with_rules.text


@pytest.mark.slow
def test_run_with_changed_files_is_labelled(tmp_path: Path) -> None:
    whole, other = build_nightly_runs(tmp_path / "runs")[:2]
    assert "tampered" not in page_of(whole).text
    (whole / MODULES).write_bytes((other / MODULES).read_bytes())
    page = page_of(whole)
    assert page.text.count("tampered") >= 1 + SECTIONS
    assert "do not rely on these numbers." in page.text
    assert "partial" not in page.text
    after = page_of(other)
    assert "tampered" in after.text  # the run that it is compared with
    assert "do not rely on these numbers." not in after.text


@pytest.mark.slow
def test_changes_equal_the_diff_with_the_previous_run(tmp_path: Path) -> None:
    folders = build_nightly_runs(tmp_path / "runs", ("complete", "partial", "partial", "running"))
    figures = page_of(folders[2]).figures
    with diff_runs(folders[1], folders[2]) as drift:
        for name in ("compared", "same", "upgraded", "downgraded", "changed", "appeared", "vanished", "joined", "left"):
            count = getattr(drift.counts, name)
            assert figures.get(f"drift.{name}", "0") == str(count), name
            assert (f"drift.{name}" in figures) == bool(count) or name in ("compared", "same"), "zero is hidden"
    assert figures["drift.upgraded"] == "3"
    assert figures["drift.not_seen"] == "1"


def test_a_complete_run_is_not_compared_with_a_trial(tmp_path: Path) -> None:
    folders = build_nightly_runs(tmp_path / "runs")
    edit_manifest(folders[1], lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=5)))
    assert page_of(folders[2]).figures["drift.upgraded"] == "6", "since the first night"


def test_report_is_written_when_earlier_runs_cannot_be_read(tmp_path: Path) -> None:
    folders = build_nightly_runs(tmp_path / "runs")
    (folders[1] / MODULES).write_bytes(b"PAR1")
    page = page_of(folders[2])
    assert "Some earlier runs could not be read" in page.text
    assert page.figures["devices.ok"] == "10"
    alone = page_of(folders[2], directory=tmp_path / "nowhere")
    assert "nowhere: cannot be read" in alone.text


def test_policy_results_are_text(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    page = page_of(every_status(tmp_path / "runs" / "now").folder, policy=load_policy(rules))
    assert page.figures["policy.rules"] == "2"
    assert page.figures["rule.no 1.0 <b>.violated"] == "2"
    assert page.figures["rule.ble is there.violated"] == "1"
    assert "2 of 2 rules are violated" in page.text
    assert page.figures["policy.error"] == page.figures["policy.warning"] == "1"
    assert "p1/device0000" in page.text


def test_fleet_without_answers_is_a_page(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    page = page_of(build(tmp_path / "runs" / "now", fleet, [not_found(fleet[0])]).folder)
    assert "No device reported a module" in page.text
    empty = page_of(running(tmp_path / "other" / "now", [], []).folder)
    assert "devices.fleet" not in empty.figures, "a number of nothing"
    assert "The audit was killed: no device was listed so far" in empty.text


def test_path_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = build(tmp_path / "runs" / "now", [named(0)], []).folder
    for path in (tmp_path / "none" / "page.html", tmp_path):
        with pytest.raises(RunNotWritableError, match=r"cannot be (written|replaced)"):
            write_report(folder, path, now=NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    with pytest.raises(RunFolderError):
        write_report(tmp_path / "none", tmp_path / "page.html")


def test_missing_extra_is_reported_with_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "jinja2":
            raise ImportError(name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=re.escape(f"the report needs jinja2: {describe_extra('report')}")):
        write_report(tmp_path, tmp_path / "page.html")


@pytest.mark.slow
def test_templates_are_compiled_once_and_what_is_kept_is_never_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled templates are kept where Python keeps compiled modules, also if that is another folder."""
    run = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "compiled"))

    def render() -> bytes:
        report_environment.cache_clear()
        return write_report(run, tmp_path / "page.html", now=NOW).read_bytes()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    expected = render()
    assert not list(tmp_path.rglob("*.template"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert render() == expected
    kept = list(tmp_path.rglob("*.template"))
    assert kept
    with monkeypatch.context() as patched:
        patched.setattr(jinja2.Environment, "_generate", None)  # nothing is compiled again
        assert render() == expected
    for file in kept:
        file.write_bytes(b"cut off"[: len(file.name) % 8])
    assert render() == expected
    monkeypatch.setattr(sys, "pycache_prefix", "/dev/null")
    assert render() == expected
    report_environment.cache_clear()
