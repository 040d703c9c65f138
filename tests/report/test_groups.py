"""The table of devices by attributes, in the page and as metrics, equals counts in plain Python."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.cli.app import main
from auditor.config.loader import parse_settings
from auditor.config.sections import MetricsSettings
from auditor.errors import SettingsError
from auditor.hooks.prometheus import render_metrics
from auditor.report import coverage
from auditor.report.builder import build_report
from auditor.report.model import DeviceGroup
from tests.runs.run_folders import build, edit_manifest, failed, named, ok

SITES = ["a1", "a1", "a1", "b2", "b2", "c3", None]

ONE = {
    "name": "eu",
    "endpoint": "http://127.0.0.1:1/",
    "access_key_id": {"env": "A"},
    "access_key_secret": {"env": "B"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven devices; the third one failed, and the first and the fourth are on the target."""
    fleet = [named(number) for number in range(len(SITES))]
    newest = (0, 3)
    outcomes = [
        failed(device) if number == 2 else ok(device, ("ble", "2.0" if number in newest else "1.0"))
        for number, device in enumerate(fleet)
    ]
    details = [
        {"attributes": None if site is None else {"site": site, "run": "r", "self": site}, "device_status": "ONLINE"}
        for site in SITES
    ]
    return build(tmp_path / "audits" / "run", fleet, outcomes, details=details).folder


def test_devices_failures_and_the_share_on_target_are_counted_by_attribute(folder: Path) -> None:
    found = build_report(folder, group_by=["site"]).groups
    assert found is not None
    assert found.rows == (
        DeviceGroup(("a1",), 3, 1, 0.5), DeviceGroup(("b2",), 2, 0, 0.5), DeviceGroup(("c3",), 1, 0, 0.0),
        DeviceGroup((None,), 1, 0, 0.0),
    )  # fmt: skip
    assert (found.combined, found.others) == (0, None)
    assert build_report(folder).groups is None


def test_groups_and_the_first_screen_have_one_target(folder: Path) -> None:
    """The target is the newest version of all runs, not that of the devices that answered in the last one."""
    earlier = folder.rename(folder.with_name("earlier"))
    later = build(folder, [named(0), named(1)], [ok(named(0), ("ble", "1.0")), failed(named(1))],
                  details=[{"attributes": {"site": "a1"}}] * 2).folder  # fmt: skip
    edit_manifest(later, lambda manifest: replace(manifest, started_at="2026-11-23T02:00:00.000Z"))
    report = build_report(later, group_by=["site"], now=datetime(2026, 11, 23, 5, tzinfo=UTC))
    assert earlier.is_dir()
    assert report.rollouts.share == 0.0
    assert report.groups is not None
    assert report.groups.rows == (DeviceGroup(("a1",), 2, 1, 0.0),)


def test_further_groups_are_one_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_GROUPS", 1)
    found = build_report(folder, group_by=["site", "nothing has this"]).groups
    assert found is not None
    assert found.rows == (DeviceGroup(("a1", None), 3, 1, 0.5),)
    assert (found.combined, found.others) == (3, DeviceGroup((None, None), 4, 0, 0.25))


def samples(folder: Path, *names: str, max_series: int = 1_000) -> Callable[[str], Counter[tuple[str, ...]]]:
    text = render_metrics(folder, group_by=names, options=MetricsSettings(max_series=max_series)).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def of(name: str) -> Counter[tuple[str, ...]]:
        return Counter({
            tuple(value for label, value in sorted(each.labels.items()) if label != "run"): int(each.value)
            for each in found if each.name == name
        })  # fmt: skip

    return of


def test_metrics_have_a_label_for_each_attribute(folder: Path) -> None:
    of = samples(folder, "site", "self", "run")
    assert set(of("auditor_group_label")) == {("run", "attribute_run"), ("self", "attribute_self"), ("site", "site")}
    assert +of("auditor_group_devices") == Counter({
        ("r", "a1", "a1", "ok"): 2, ("r", "a1", "a1", "failed"): 1, ("r", "b2", "b2", "ok"): 2,
        ("r", "c3", "c3", "ok"): 1, ("", "", "", "ok"): 1,
    })  # fmt: skip
    assert of("auditor_group_version_devices")["demo", "r", "a1", "ble", "2.0", "p1", "a1"] == 1
    assert not samples(folder)("auditor_group_devices")


def test_further_groups_of_metrics_are_other(folder: Path) -> None:
    of = samples(folder, "site", max_series=10)
    assert of("auditor_group_devices") == Counter({("a1", "ok"): 2, ("a1", "failed"): 1, ("other", "ok"): 4})
    assert of("auditor_groups_combined") == Counter({(): 3})
    versions = {key[-1]: 0 for key in of("auditor_group_version_devices")}
    assert set(versions) == {"a1", "other"}


@pytest.mark.parametrize("limit", [1, 2])
def test_an_attribute_with_the_label_of_further_groups_is_not_counted_with_them(tmp_path: Path, limit: int) -> None:
    sites = ["a1", "a1", "a1", "other", "other", "b2", "other_", "c3"]
    fleet = [named(number) for number in range(len(sites))]
    details = [{"attributes": {"site": site}} for site in sites]
    run = build(tmp_path / "run", fleet, [ok(device, ("ble", "1")) for device in fleet], details=details).folder
    of = samples(run, "site", max_series=10 * limit)
    rest = ("other__", "ok")
    shown = {("a1", "ok"): 3} if limit == 1 else {("a1", "ok"): 3, ("other", "ok"): 2}
    assert of("auditor_group_devices") == Counter({**shown, rest: 8 - sum(shown.values())})
    assert {key[-1] for key in of("auditor_group_version_devices")} == {*(site for site, _ in shown), "other__"}


@pytest.mark.parametrize("command", ["report", "metrics"])
def test_the_flag_names_attributes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert main((command, "audits", "--group-by", "site", "-o", "-")) == 0
    assert "b2" in capsys.readouterr().out
    for flag, sentence in (("stie", "did you mean site?"), ("a,b,c,d,e", "at most 4")):
        assert main((command, "audits", "--group-by", flag, "-o", "-")) == 2
        assert sentence in capsys.readouterr().err


def test_the_settings_name_attributes() -> None:
    report = {"group_by": ["site", "ring"]}
    assert parse_settings({"account": [ONE], "report": report}).report.group_by == ("site", "ring")
    for wrong in (["a"] * 2, list("abcde"), [""], "site"):
        with pytest.raises(SettingsError, match=r"report(: |\.)group_by"):
            parse_settings({"account": [ONE], "report": {"group_by": wrong}})
