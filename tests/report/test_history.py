"""The past of a page: whose it is, how far each run of it is to be trusted, and a page that stands without it."""

import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

import auditor.report.builder
import auditor.report.history
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.policy.loader import rules_from
from auditor.policy.model import Rules
from auditor.report.builder import read_page
from auditor.report.charts import adoption_inks
from auditor.report.render import render, write_report
from auditor.runs.folder import DEVICES, INVENTORY_JSON, MODULES
from auditor.runs.manifest import MANIFEST
from auditor.storage.database import quoted, quoted_to_read
from tests.report.pages import read, read_text
from tests.runs.run_folders import build, edit_manifest, named, ok

NOW = datetime(2026, 11, 26, tzinfo=UTC)
FLEET = [named(n) for n in range(6)]


def night(folder: Path, day: int, *versions: str) -> Path:
    """A run of six devices, the first of which answer with these versions; it began on that day of November."""
    answers = [ok(device, ("ble", version)) for device, version in zip(FLEET, versions, strict=False)]
    build(folder, FLEET, answers)
    edit_manifest(folder, lambda manifest: replace(manifest, started_at=f"2026-11-{day:02}T02:00:00.000Z"))
    return folder


def rules(**rule: object) -> Rules:
    return Rules(rules_from({"rule": [{"name": "asked", **rule}]}, "rules.toml"), "rules.toml")


def copied(run: Path, name: str, query: str) -> None:
    """Replaces a run's Parquet file by what a query makes of it."""
    new = run / "new"
    source = f"read_parquet({quoted_to_read(run / name)})"
    with duckdb.connect() as database:
        database.execute(f"COPY ({query.format(source)}) TO {quoted(new)} (FORMAT parquet)")
    new.replace(run / name)


def test_a_partial_run_whose_files_are_gone_is_labelled_as_tampered_too_and_told_why(tmp_path: Path) -> None:
    before = night(tmp_path / "runs" / "before", 20, *["1.0"] * 5)
    now = night(tmp_path / "runs" / "now", 21, *["1.1"] * 6)
    (before / MODULES).unlink()
    page = read_page(now, now=NOW)
    assert page.history is not None
    assert [run.label for run in page.history.runs] == ["partial, tampered", None]
    reason = "before was sealed, but modules.parquet is missing: its versions are not known"
    assert reason in page.history.doubts
    assert reason in read_text(render(page)).text


def test_a_changed_inventory_of_a_partial_run_is_told_beside_its_label(tmp_path: Path) -> None:
    before = night(tmp_path / "runs" / "before", 20, *["1.0"] * 5)
    now = night(tmp_path / "runs" / "now", 21, *["1.1"] * 6)
    (before / INVENTORY_JSON).write_text("{}")
    page = read_page(now, now=NOW)
    assert page.history is not None
    assert page.history.runs[0].label == "partial, tampered"
    assert any("inventory.json" in doubt for doubt in page.history.doubts)
    assert page.changes is not None
    assert page.changes.label == "partial"  # the files that are compared are those that were sealed


def test_this_run_is_the_last_column_wherever_it_lies(tmp_path: Path) -> None:
    for day in (20, 21):
        night(tmp_path / "old" / f"run{day}", day, *["1"] * 6)
    # Another run of the same folder name is another run.
    night(tmp_path / "old" / "now", 22, *["1"] * 5)
    now = night(tmp_path / "new" / "now", 23, "2", *["1"] * 5)
    page = read_page(now, directory=tmp_path / "old", now=NOW)
    assert page.history is not None
    assert [run.run for run in page.history.runs] == ["run20", "run21", "now", "now"]
    assert [run.label for run in page.history.runs] == [None, None, "partial", None]
    (adoption,) = page.history.modules
    assert adoption.versions == ("2", "1")
    assert adoption.shares[:3] == ((0.0, 1.0),) * 3
    assert adoption.shares[3] == pytest.approx((1 / 6, 5 / 6))
    # A copy of it among the older runs does not count twice.
    shutil.copytree(now, tmp_path / "old" / "copy")
    again = read_page(now, directory=tmp_path / "old", now=NOW)
    assert again.history == page.history


def test_as_many_runs_as_fit_end_with_this_one_and_later_ones_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [night(tmp_path / "runs" / f"run{day}", day, *["1"] * (6 if day < 23 else 3)) for day in range(19, 26)]
    page = read_page(runs[3], now=NOW)
    assert page.history is not None
    assert [run.run for run in page.history.runs] == ["run19", "run20", "run21", "run22"]
    assert page.history.doubts == ()
    monkeypatch.setattr(auditor.report.history, "RUNS", 3)
    fewer = read_page(runs[3], now=NOW)
    assert fewer.history is not None
    assert [run.run for run in fewer.history.runs] == ["run20", "run21", "run22"]
    last = read_page(runs[-1], now=NOW)
    assert last.history is not None
    assert last.history.doubts == ("2 of 2 earlier runs are not of the whole fleet (partial)",)


def test_after_a_rollback_the_newest_that_is_alive_has_the_ink_of_the_newest(tmp_path: Path) -> None:
    night(tmp_path / "runs" / "before", 20, "2.0", "2.0", "2.0", "1.0", "1.0", "1.0")
    now = night(tmp_path / "runs" / "now", 21, "1.1", "1.1", "1.1", "1.0", "1.0", "1.0")
    page = read_page(now, now=NOW)
    assert page.history is not None
    (adoption,) = page.history.modules
    assert adoption.module.newest == "1.1"
    inks = dict(zip(adoption.versions, adoption_inks(adoption), strict=True))
    assert [text for text, ink in inks.items() if ink == "accent"] == ["1.1"]
    assert set(inks) == {"2.0", "1.1", "1.0"}


def test_a_run_that_is_passed_over_is_told(tmp_path: Path) -> None:
    broken = night(tmp_path / "runs" / "broken", 20, *["1"] * 6)
    now = night(tmp_path / "runs" / "now", 21, *["1"] * 6)
    (broken / MANIFEST).write_text("{")
    page = read_page(now, now=NOW)
    assert len(page.unread) == 1
    assert page.unread[0].startswith("a run is passed over: broken")
    assert page.unread[0] in page.notes


def test_a_run_that_is_pruned_meanwhile_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = night(tmp_path / "runs" / "before", 20, *["1"] * 6)
    now = night(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(before / MODULES))

    for name in ("diff_runs", "read_history"):
        monkeypatch.setattr(auditor.report.history, name, gone)
    page = read(write_report(now, tmp_path / "page.html", now=NOW))
    assert page.figures["devices.ok"] == "6"
    assert "before/modules.parquet: cannot be read: No such file or directory" in page.text
    assert str(tmp_path) not in page.text


def test_a_full_temporary_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = night(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(RunNotWritableError, match="temporary folder: cannot be written: No space left on device"):
        read_page(now, now=NOW)


@pytest.mark.parametrize("error", [RunFolderError("boom"), FileNotFoundError(2, "No such file", "boom")])
def test_a_policy_that_cannot_be_judged_is_told_and_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = night(tmp_path / "runs" / "now", 21, *["1"] * 6)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(auditor.report.builder, "judge_run", fails)
    page = read_page(now, rules=rules(deny=["1"]), now=NOW)
    assert page.notes[-1].startswith("the policy could not be judged: boom")
    shown = read_text(render(page))
    assert shown.figures["devices.ok"] == "6"
    assert "The policy could not be judged." in shown.text
    assert page.notes[-1] in shown.text
    assert "No rule is violated" not in shown.text
    assert "policy.rules" not in shown.figures


def test_rules_are_judged_as_of_the_time_of_the_page(tmp_path: Path) -> None:
    now = night(tmp_path / "runs" / "now", 22, *["1"] * 6)
    fresh = rules(max_age="2h")
    verdicts = []
    for hour in (3, 5):  # answered at two
        page = read_page(now, rules=fresh, now=datetime(2026, 11, 22, hour, tzinfo=UTC))
        assert page.policy is not None
        verdicts.append(page.policy.verdicts[0].verdict)
    assert verdicts == ["compliant", "violated"]


def test_what_violates_no_rule_is_no_example_whatever_it_is_called(tmp_path: Path) -> None:
    fleet = [FLEET[0], replace(FLEET[1], device_name="violated")]
    run = build(tmp_path / "now", fleet, [ok(fleet[0], ("ble", "1.0")), ok(fleet[1], ("ble", "weird+x"))]).folder
    page = read_page(run, rules=rules(minimum="2.0"), now=NOW)
    assert page.policy is not None
    assert [(each.violated, each.unparseable) for each in page.policy.verdicts] == [(1, 1)]
    assert [where for _, where, _ in page.policy.examples] == ["p1/device0000 ble 1.0"]


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("audited_at::VARCHAR", True),
        ("'none'", False),
        ("42", False),
        ("TIMESTAMP '9999-12-31' + INTERVAL 9 YEAR", False),
    ],
)
def test_times_of_a_changed_file_end_in_no_traceback(tmp_path: Path, told: str, known: bool) -> None:  # noqa: FBT001
    now = night(tmp_path / "runs" / "now", 21, *["1"] * 6)
    copied(now, DEVICES, f"SELECT * REPLACE ({told} AS audited_at) FROM {{}}")
    page = read_page(now, now=NOW)
    assert page.labels == ("tampered",)
    assert (page.coverage.first is not None) == known
    assert ("no answer yet" in render(page)) != known
