"""`auditor history --rollouts`, `history`, `status` and `metrics` show the states that `read_rollouts` returns."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from auditor.analysis.rollouts import Rollouts, read_rollouts
from auditor.cli.app import main
from auditor.cli.render_history import SHORT_REASONS
from auditor.hooks.prometheus import render_metrics
from tests.analysis.simulated_nights import NIGHTS, Fleet, write_night
from tests.runs.test_document_schemas import validate


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fleet, directory = Fleet(3), tmp_path_factory.mktemp("audits")
    for night in range(0, NIGHTS, 2):
        write_night(directory, fleet, night)
    return directory


@pytest.fixture(scope="module")
def rollouts(audits: Path) -> Rollouts:
    return read_rollouts(audits)


def auditor(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Return standard output and standard error."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 0
    done = capsys.readouterr()
    return done.out, done.err


@pytest.mark.slow
def test_each_format_has_every_rollout(
    capsys: pytest.CaptureFixture[str], audits: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(auditor(capsys, "history", audits, "--rollouts", "--format", "json")[0])
    validate("rollouts", document)
    assert document["run"] == rollouts.run
    rows = {(row["account"], row["product_key"]): row for row in document["rollouts"]}
    assert [(each.account, each.product_key) for each in rollouts.by_urgency] == [*rows]
    for each in rollouts.rollouts:
        row = rows[each.account, str(each.product_key)]
        for name in ("state", "target", "behind", "failed", "share", "change", "runs_in_state", "reason", "no_date"):
            assert row[name] == getattr(each, name)
        assert row["expected_at"] == (None if each.expected_at is None else str(each.expected_at))
    text, _ = auditor(capsys, "history", audits, "--rollouts", "--format", "csv")
    assert [row["state"] for row in csv.DictReader(io.StringIO(text))] == [each.state for each in rollouts.by_urgency]
    monkeypatch.setenv("COLUMNS", "200")
    table, notes = auditor(capsys, "history", audits, "--rollouts")
    lines = table.splitlines()[1:]
    assert len(lines) == rollouts.count == 12
    for line, each in zip(lines, rollouts.by_urgency, strict=True):
        reason = each.reason or each.no_date
        expected = f"{each.expected_at or ''}" if reason is None else SHORT_REASONS[reason]
        assert line.rstrip().endswith(f" {expected}" if expected else f" {each.runs_in_state}"), line
    assert any(each.no_date or each.reason for each in rollouts.rollouts)
    first = rollouts.by_urgency[0]
    assert lines[0].split()[:5] == [first.account, first.product_key, "default", "rolled", "back"]
    assert f"12 rollouts: {rollouts.by_state['done'].rollouts} done" in notes


@pytest.mark.slow
def test_filters_select_rollouts(capsys: pytest.CaptureFixture[str], audits: Path, rollouts: Rollouts) -> None:
    arguments = ("history", audits, "--rollouts", "--account", "known", "--product", "rolled", "--format", "json")
    (row,) = json.loads(auditor(capsys, *arguments)[0])["rollouts"]
    expected = next(each for each in rollouts.rollouts if (each.account, each.product_key) == ("known", "rolled"))
    assert (row["state"], row["failed"], row["share"]) == ("rolled_back", expected.failed, expected.share)
    assert main(["history", str(audits), "--rollouts", "--group-by", "device_status"]) == 2


@pytest.mark.slow
def test_history_and_status_say_what_needs_attention(
    capsys: pytest.CaptureFixture[str], audits: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(auditor(capsys, "history", audits)[0].split())
    rolled = rollouts.by_urgency[0]
    sentence = f"target 2.0 (released 2026-10-28): 5% of devices, rolled back for {rolled.runs_in_state} runs; "
    sentence += (
        f"{rolled.behind} behind ({rolled.failed} failed, {rolled.offered} offered, {rolled.reverted} reverted, "
    )
    sentence += f"{rolled.never_offered} never offered)"
    assert sentence in shown, shown[shown.index("known rolled") :][:400]
    assert "beta1 (newest): 0.8% of devices, not started" in shown
    status = auditor(capsys, "status", audits)[0].splitlines()
    assert any(re.fullmatch(r"started: .* UTC \([\d,]+ (days|h|min) ago\), ended: .*", line) for line in status)
    assert any(line.startswith("rollouts: ") and " 2 rolled back" in line for line in status)
    assert f"  rolled default: {sentence}" in status
    assert status.index(f"  rolled default: {sentence}") < next(
        at for at, line in enumerate(status) if line[:5] == "next:"
    )


def test_metrics_have_the_same_numbers(audits: Path, rollouts: Rollouts) -> None:
    found = dict(
        line.rsplit(" ", 1)
        for line in render_metrics(audits / str(rollouts.run)).decode().splitlines()
        if line.startswith("auditor_rollout")
    )
    for state, count in rollouts.by_state.items():
        assert float(found[f'auditor_rollouts{{run="nightly",state="{state}"}}']) == count.rollouts
        assert float(found[f'auditor_rollouts_devices_behind{{run="nightly",state="{state}"}}']) == count.behind
    for each in rollouts.rollouts:
        labels = f'account="{each.account}",module_name="default",product_key="{each.product_key}",run="nightly"'
        assert float(found[f"auditor_rollout_share{{{labels}}}"]) == each.share
        assert float(found[f'auditor_rollout_state{{{labels},state="{each.state}"}}']) == 1
        updates = {"unknown": each.behind} if each.failed is None else {"failed": each.failed, "offered": each.offered}
        for update, devices in updates.items():
            assert float(found[f'auditor_rollout_devices_behind{{{labels},update="{update}"}}']) == devices
    assert float(found['auditor_rollouts_omitted{run="nightly"}']) == 0
