"""Earlier runs in a report: which ones, their labels, the versions in them, and a report without them."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

import auditor.report.versions
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.policy.loader import parse_policy
from auditor.policy.model import Policy
from auditor.report.builder import build_report
from auditor.report.render import render_html, write_report
from auditor.report.tiles import list_tiles
from auditor.runs.folder import DEVICES, INVENTORY_JSON, MODULES
from auditor.runs.manifest import MANIFEST
from auditor.storage.database import sql_literal, sql_read_path
from tests.database import connect
from tests.report.pages import parse_html, parse_page
from tests.runs.run_folders import build, edit_manifest, named, ok, running

NOW = datetime(2026, 11, 26, tzinfo=UTC)
FLEET = [named(n) for n in range(6)]


def build_run(folder: Path, day: int, *versions: str) -> Path:
    """Build a run of six devices on a day of November; the first devices report these versions."""
    answers = [ok(device, ("ble", version)) for device, version in zip(FLEET, versions, strict=False)]
    build(folder, FLEET, answers)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def policy_of(**rule: object) -> Policy:
    return Policy(parse_policy({"rule": [{"name": "tested", **rule}]}, "rules.toml"), "rules.toml")


def rewrite(run: Path, name: str, query: str) -> None:
    """Replace a run's Parquet file by the result of a query over it."""
    new = run / "new"
    source = f"read_parquet({sql_read_path(run / name)})"
    with connect() as database:
        database.execute(f"COPY ({query.format(source)}) TO {sql_literal(new)} (FORMAT parquet)")
    new.replace(run / name)


def test_partial_run_with_missing_files_is_labelled_as_tampered_with_a_warning(tmp_path: Path) -> None:
    before = build_run(tmp_path / "runs" / "before", 20, *["1.0"] * 5)
    now = build_run(tmp_path / "runs" / "now", 21, *["1.1"] * 6)
    (before / MODULES).unlink()
    page = build_report(now, now=NOW)
    assert [run.label for run in page.rollouts.runs] == ["partial, tampered", None]
    reason = "sealed, but modules.parquet is missing: its versions are unknown"
    assert reason in [warning.detail for warning in page.rollouts.warnings]
    assert f"before: {reason}" in parse_html(render_html(page)).text


def test_partial_run_with_a_changed_inventory_has_a_warning(tmp_path: Path) -> None:
    before = build_run(tmp_path / "runs" / "before", 20, *["1.0"] * 5)
    now = build_run(tmp_path / "runs" / "now", 21, *["1.1"] * 6)
    (before / INVENTORY_JSON).write_text("{}")
    page = build_report(now, now=NOW)
    assert page.rollouts.runs[0].label == "partial, tampered"
    assert any("inventory.json" in warning.detail for warning in page.rollouts.warnings)
    assert page.changes is not None
    assert page.changes.label == "partial"  # the files that are compared are those that were sealed


@pytest.mark.slow
def test_reported_run_is_the_last_column_in_any_directory(tmp_path: Path) -> None:
    for day in (20, 21):
        build_run(tmp_path / "old" / f"run{day}", day, *["1"] * 6)
    # Another run of the same folder name is another run.
    build_run(tmp_path / "old" / "now", 22, *["1"] * 5)
    now = build_run(tmp_path / "new" / "now", 23, "2", *["1"] * 5)
    page = build_report(now, directory=tmp_path / "old", now=NOW)
    assert [run.run for run in page.rollouts.runs] == ["run20", "run21", "now", "now"]
    assert [run.label for run in page.rollouts.runs] == [None, None, "partial", None]
    (detail,) = page.rollouts.rollouts
    assert [each.version for each in detail.versions] == ["2", "1"]
    assert [each.devices for each in detail.versions] == [(0, 0, 0, 1), (6, 6, 5, 5)]
    assert [each.age for each in detail.versions] == [0, 1]
    # A copy of it among the older runs does not count twice.
    shutil.copytree(now, tmp_path / "old" / "copy")
    repeated = build_report(now, directory=tmp_path / "old", now=NOW)
    assert repeated.rollouts == page.rollouts


@pytest.mark.slow
def test_history_is_bounded_and_ends_with_the_reported_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [build_run(tmp_path / "runs" / f"run{day}", day, *["1"] * (6 if day < 23 else 3)) for day in range(19, 26)]
    page = build_report(runs[3], now=NOW)
    assert [run.run for run in page.rollouts.runs] == ["run19", "run20", "run21", "run22"]
    assert page.rollouts.warnings == ()
    monkeypatch.setattr(auditor.report.versions, "MAX_RUNS", 3)
    fewer = build_report(runs[3], now=NOW)
    assert [run.run for run in fewer.rollouts.runs] == ["run20", "run21", "run22"]
    last = build_report(runs[-1], now=NOW)
    assert [warning.detail for warning in last.rollouts.warnings] == [
        "2 of 2 earlier runs do not cover the whole fleet (partial)"
    ]


def test_version_that_was_rolled_back_is_still_the_target(tmp_path: Path) -> None:
    build_run(tmp_path / "runs" / "before", 20, "2.0", "2.0", "2.0", "1.0", "1.0", "1.0")
    now = build_run(tmp_path / "runs" / "now", 21, "1.1", "1.1", "1.1", "1.0", "1.0", "1.0")
    page = build_report(now, now=NOW)
    (detail,) = page.rollouts.rollouts
    assert (detail.rollout.target, detail.rollout.state, detail.rollout.on_target) == ("2.0", "rolled_back", 0)
    assert [(each.version, each.age) for each in detail.versions] == [("2.0", 0), ("1.1", 1), ("1.0", 2)]
    assert page.rollouts.ages == ((3, 0, 3, 0, 0), (0, 3, 3, 0, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "target", "on_target", "behind"),
    [
        (["1.0", "1.0"], "2.0", 0, 2),  # the newest version of its own answers is not the target
        (["2.0", "1.0", "1.0"], "2.0", 1, 2),
        (["3.0", "2.0", "1.0"], "3.0", 1, 2),  # a rollout that began since the run before
    ],
)
def test_the_target_of_a_run_that_was_killed_is_that_of_the_runs_before(
    tmp_path: Path, answers: list[str], target: str, on_target: int, behind: int
) -> None:
    build_run(tmp_path / "runs" / "before", 20, "2.0", "2.0", "2.0", "1.0", "1.0", "1.0")
    killed = tmp_path / "runs" / "killed"
    running(killed, FLEET, [ok(device, ("BLE", version)) for device, version in zip(FLEET, answers, strict=False)])
    edit_manifest(killed, lambda manifest: replace(manifest, started_at="2026-11-21T02:00:00.000Z"))
    page = build_report(killed, now=NOW).rollouts
    (detail,) = page.rollouts
    assert (detail.rollout.target, detail.rollout.on_target, detail.rollout.behind) == (target, on_target, behind)
    assert (detail.rollout.state, detail.rollout.reason) == ("unknown", "few_answers")
    assert (page.on_target, page.devices) == (on_target, on_target + behind)
    assert [(count.devices, count.behind) for count in page.by_state.values()] == [(on_target + behind, behind)]


@pytest.mark.slow
def test_sections_of_a_report_agree_where_the_versions_of_all_runs_have_no_order(tmp_path: Path) -> None:
    """The versions of this run have a newest one; with those of the run before, none is the newest."""
    build_run(tmp_path / "runs" / "before", 20, *["master"] * 3, *["1.0"] * 3)
    sealed = build_run(tmp_path / "runs" / "now", 21, *["2.0"] * 2, *["1.0"] * 4)
    page = build_report(sealed, now=NOW).rollouts
    (detail,) = page.rollouts
    assert (detail.rollout.target, detail.rollout.reason) == (None, "no_order")
    assert (page.on_target, page.devices, page.ages[-1]) == (0, 0, (0, 0, 0, 0, 6))
    killed = tmp_path / "runs" / "killed"
    running(killed, FLEET, [ok(FLEET[0], ("ble", "2.0")), ok(FLEET[1], ("ble", "1.0"))])
    edit_manifest(killed, lambda manifest: replace(manifest, started_at="2026-11-22T02:00:00.000Z"))
    page = build_report(killed, now=NOW).rollouts
    (detail,) = page.rollouts
    assert (detail.rollout.target, detail.rollout.reason, page.ages[-1]) == (None, "no_order", (0, 0, 0, 0, 2))


@pytest.mark.slow
def test_a_damaged_earlier_run_does_not_hide_the_others_of_a_killed_one(tmp_path: Path) -> None:
    build_run(tmp_path / "runs" / "first", 19, *["2.0"] * 6)
    partial = build_run(tmp_path / "runs" / "second", 20, *["1.0"] * 5)
    (partial / DEVICES).write_bytes(b"damaged")
    killed = tmp_path / "runs" / "killed"
    running(killed, FLEET, [ok(FLEET[0], ("ble", "1.0"))])
    edit_manifest(killed, lambda manifest: replace(manifest, started_at="2026-11-22T02:00:00.000Z"))
    page = build_report(killed, now=NOW)
    assert [run.run for run in page.rollouts.runs] == ["first", "second", "killed"]
    (detail,) = page.rollouts.rollouts
    assert (detail.rollout.target, detail.rollout.on_target) == ("2.0", 0)


def limit(folder: Path) -> None:
    """Mark a run as one that a flag limits to its first devices."""
    edit_manifest(folder, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=2)))


@pytest.mark.slow
def test_limited_run_shows_its_own_modules(tmp_path: Path) -> None:
    build_run(tmp_path / "runs" / "before", 20, *["1.0"] * 6)
    now = build_run(tmp_path / "runs" / "now", 21, "2.0", "2.0", *["1.0"] * 4)
    limit(now)
    for folder in (now, Path(shutil.copytree(now, tmp_path / "alone" / "now"))):
        page = build_report(folder, now=NOW)
        (detail,) = page.rollouts.rollouts
        assert (detail.rollout.target, detail.rollout.on_target, detail.rollout.state) == ("2.0", 2, "unknown")
        assert "No device reported a module" not in render_html(page)


def test_tiles_compare_with_the_same_run_and_not_with_a_trial(tmp_path: Path) -> None:
    build_run(tmp_path / "runs" / "before", 20, *["1.0"] * 5)
    trial = build(tmp_path / "runs" / "trial", FLEET[:2], [ok(each, ("ble", "1.0")) for each in FLEET[:2]]).folder
    edit_manifest(trial, lambda manifest: replace(manifest, started_at="2026-11-21T02:00:00.000Z"))
    limit(trial)
    page = build_report(build_run(tmp_path / "runs" / "now", 22, *["1.0"] * 6), now=NOW)
    assert [run.label for run in page.rollouts.runs] == ["partial", "part of the fleet", None]
    tiles = {tile.title: tile for tile in list_tiles(page)}
    assert tiles["Devices"].change == ""
    assert tiles["Answered"].change == "+16.7 points"
    assert page.changes is not None
    assert page.changes.run == "before"


def test_share_of_a_partial_run_says_how_many_devices_answered(tmp_path: Path) -> None:
    page = build_report(build_run(tmp_path / "now", 22, *["1.0"] * 3), now=NOW)
    tile = next(tile for tile in list_tiles(page) if tile.figure == "modules.share")
    assert tile.counts_below[0].noun == "of 3 installed modules of the 50% of devices that answered"


def test_modules_are_unknown_whose_devices_have_no_answer(tmp_path: Path) -> None:
    other = [named(10 + n, product="p2", account="eu") for n in range(2)]
    fleet = [*FLEET, *other]
    answers = [ok(device, ("ble", "1")) for device in FLEET]
    rest = [ok(device, ("wifi", "3")) for device in other]
    for day, outcomes in ((20, [*answers, *rest]), (21, answers)):
        folder = build(tmp_path / "runs" / f"run{day}", fleet, outcomes).folder
        edit_manifest(folder, lambda m, day=day: replace(m, started_at=f"2026-11-{day}T02:00:00.000Z"))  # type: ignore[misc]
    page = build_report(folder, now=NOW)
    (unknown,) = page.rollouts.unknown
    assert (unknown.account, unknown.product_key, unknown.module_name) == ("eu", "p2", "wifi")
    assert (unknown.devices, unknown.run) == (2, "run20")
    assert page.rollouts.unknown_by_account == {"eu": 1}
    text = parse_html(render_html(page)).text
    assert "1 module is unknown in this run" in text
    assert "Every run is counted by the modules that devices report in this one." in text
    assert "2 of 8 devices have no answer, and 1 module is unknown." in text
    assert "Account eu: none of its 2 devices answered" in text
    assert "1 module of its products is unknown in this run" in text


def test_skipped_run_is_reported(tmp_path: Path) -> None:
    broken = build_run(tmp_path / "runs" / "broken", 20, *["1"] * 6)
    now = build_run(tmp_path / "runs" / "now", 21, *["1"] * 6)
    (broken / MANIFEST).write_text("{")
    page = build_report(now, now=NOW)
    assert len(page.unreadable) == 1
    assert page.unreadable[0].startswith("run skipped: broken")
    assert page.unreadable[0] in page.caveats


def test_report_is_written_when_the_previous_run_is_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_run(tmp_path / "runs" / "before", 20, *["1"] * 6)
    now = build_run(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(before / MODULES))

    monkeypatch.setattr("auditor.report.changes.diff_runs", gone)
    monkeypatch.setattr("auditor.report.versions.read_history", gone)
    page = parse_page(write_report(now, tmp_path / "page.html", now=NOW))
    assert page.figures["devices.ok"] == "6"
    assert "before/modules.parquet: cannot be read: No such file or directory" in page.text
    assert str(tmp_path) not in page.text


def test_full_temporary_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = build_run(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("auditor.storage.files.mkdtemp", full)
    with pytest.raises(RunNotWritableError, match="temporary folder: cannot be written: No space left on device"):
        build_report(now, now=NOW)


@pytest.mark.parametrize("error", [RunFolderError("boom"), FileNotFoundError(2, "No such file", "boom")])
def test_report_is_written_when_the_policy_cannot_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = build_run(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("auditor.report.policy.evaluate_policy", fails)
    page = build_report(now, policy=policy_of(deny=["1"]), now=NOW)
    assert page.caveats[-1].startswith("the policy could not be evaluated: boom")
    shown = parse_html(render_html(page))
    assert shown.figures["devices.ok"] == "6"
    assert "The policy could not be evaluated (error)" in shown.text
    assert page.caveats[-1] in shown.text
    assert "No rule is violated" not in shown.text
    assert "policy.rules" not in shown.figures


def test_policy_is_evaluated_at_the_time_of_the_report(tmp_path: Path) -> None:
    now = build_run(tmp_path / "runs" / "now", 22, *["1"] * 6)
    fresh = policy_of(max_age="2h")
    verdicts = []
    for hour in (3, 5):  # answered at two
        page = build_report(now, policy=fresh, now=datetime(2026, 11, 22, hour, tzinfo=UTC))
        assert page.policy is not None
        verdicts.append(page.policy.results[0].verdict)
    assert verdicts == ["compliant", "violated"]


def test_only_violations_are_examples_for_any_device_name(tmp_path: Path) -> None:
    fleet = [FLEET[0], structs.replace(FLEET[1], device_name="violated")]
    run = build(tmp_path / "now", fleet, [ok(fleet[0], ("ble", "1.0")), ok(fleet[1], ("ble", "weird+x"))]).folder
    page = build_report(run, policy=policy_of(minimum="2.0"), now=NOW)
    assert page.policy is not None
    assert [(each.violated, each.unparseable) for each in page.policy.results] == [(1, 1)]
    assert [where for _, where, _ in page.policy.examples] == ["p1/device0000 ble 1.0"]


@pytest.mark.parametrize(
    ("expression", "valid"),
    [
        ("audited_at::VARCHAR", True),
        ("'none'", False),
        ("42", False),
        ("TIMESTAMP '9999-12-31' + INTERVAL 9 YEAR", False),
    ],
)
def test_invalid_times_in_a_changed_file_are_tolerated(tmp_path: Path, expression: str, valid: bool) -> None:  # noqa: FBT001
    now = build_run(tmp_path / "runs" / "now", 21, *["1"] * 6)
    rewrite(now, DEVICES, f"SELECT * REPLACE ({expression} AS audited_at) FROM {{}}")
    page = build_report(now, now=NOW)
    assert page.labels == ("tampered",)
    assert (page.coverage.ages.first is not None) == valid
    assert ("answers of unknown time" in render_html(page)) != valid
