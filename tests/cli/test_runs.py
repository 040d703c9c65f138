"""The commands runs, status, device, diff --since and sql --runs, in this process."""

import io
import json
import os
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from auditor.cli.app import main
from auditor.errors import ExitReasonCode
from auditor.runs.folder import CHANGES
from auditor.runs.locking import RunLock
from auditor.runs.manifest import MANIFEST, DeviceCounts, DiscoveryInfo, FailureInfo, read_manifest
from auditor.runs.retention import prune_runs
from auditor.runs.selection_info import ExitReason
from tests.analysis.recorded_runs import DAYS, add_run, write_days
from tests.runs.run_folders import build, edit_manifest, failed, named, ok, running
from tests.runs.test_document_schemas import validate

NEWEST = "20261125T020000Z-nightly"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = write_days(tmp_path / "audits")
    for day, answers in enumerate(DAYS, 22):
        folder = directory / f"202611{day}T020000Z-nightly"
        code, word = (1, "too_many_failed") if "failed" in answers else (0, "success")
        conclude(folder, code, word)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    return directory


def conclude(folder: Path, code: int, word: ExitReasonCode) -> None:
    reason = ExitReason(word, f"the sentence of {word}")
    edit_manifest(folder, lambda manifest: replace(manifest, exit_code=code, exit_reason=reason))


def auditor(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], str]:
    """Return the lines of standard output, and standard error."""
    found = main(arguments)
    printed = capsys.readouterr()
    assert found == code, printed.err
    return [line.rstrip() for line in printed.out.splitlines()], printed.err


def test_runs_are_listed_with_the_reason_of_their_end(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = auditor(capsys, "runs")
    assert [line.split()[0] for line in lines] == ["run", *(f"202611{day}T020000Z-nightly" for day in (25, 24, 23, 22))]
    assert lines[1].split()[1:4] == ["complete", "3", "0"]
    assert lines[2].endswith("1  too_many_failed: the sentence of too_many_failed")
    rows = json.loads("\n".join(auditor(capsys, "runs", "--format", "json", "--limit", "2")[0]))["runs"]
    assert [(row["run"][:8], row["exit_code"], row["devices"], row["failed"]) for row in rows] == [
        ("20261125", 0, 3, 0), ("20261124", 1, 3, 1),
    ]  # fmt: skip
    assert "the newest 2 of 4 runs" in auditor(capsys, "runs", "--limit", "2")[1]
    assert (
        "no run named 'other'; there are runs named 'nightly'" in auditor(capsys, "runs", "--name", "other", code=2)[1]
    )


def test_deleted_runs_are_listed_as_deleted(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune_runs(directory, keep=1)
    lines, _ = auditor(capsys, "runs")
    assert [line.split()[:2] for line in lines[1:]] == [
        [NEWEST, "complete"], ["20261124T020000Z-nightly", "deleted"], ["20261123T020000Z-nightly", "deleted"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "code", "command"),
    [
        ("success", 0, "auditor diff --since=20261124T020000Z-nightly audits"),
        ("within_tolerance", 0, f"auditor devices audits/{NEWEST} --status failed"),
        ("too_many_failed", 1, f"auditor resume audits/{NEWEST}"),
        ("too_many_pending", 1, f"auditor resume audits/{NEWEST}"),
        ("silent_account", 1, "auditor check 'my settings.toml'"),
        ("not_verified", 1, f"auditor verify audits/{NEWEST}"),
        ("refused_account", 3, "auditor check 'my settings.toml'"),
        ("policy_violated", 4, f"auditor policy audits/{NEWEST} 'our rules.toml' --devices"),
        ("interrupted", 130, f"auditor resume audits/{NEWEST}"),
    ],
)
def test_status_says_why_the_last_run_ended_and_what_to_do(
    directory: Path, capsys: pytest.CaptureFixture[str], word: ExitReasonCode, code: int, command: str
) -> None:
    conclude(directory / NEWEST, code, word)
    failures = (FailureInfo("auditor.Timeout", 3, "p1/device0001"),)
    edit_manifest(
        directory / NEWEST,
        lambda manifest: replace(
            manifest,
            settings_file="my settings.toml",
            settings={"policy": {"file": "our rules.toml"}},
            failures=failures,
        ),
    )
    lines, _ = auditor(capsys, "status")
    assert lines[0] == f"run: audits/{NEWEST}"
    assert f"result: exit {code} ({word}): the sentence of {word}" in lines
    entry = "; see docs/errors.md#auditor.Timeout"
    assert f"failed: 3 with auditor.Timeout, such as p1/device0001{entry}" in lines
    assert "changes: since 20261124T020000Z-nightly: 3 modules upgraded" in lines
    assert f"  {command}" in lines
    # What it advises is a command with such options.
    assert main([*command.split()[1:2], "--help"]) == 0


def test_status_of_a_limited_run_has_no_rollouts_of_another_run(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(line.startswith("rollouts: ") for line in auditor(capsys, "status")[0])
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    lines, _ = auditor(capsys, "status")
    assert lines[0].endswith(NEWEST)
    assert not any(line.startswith("rollouts: ") for line in lines)


def test_status_of_a_killed_run_names_the_last_success(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = directory / "20261126T020000Z-nightly"
    running(folder, [named(0)], [])
    edit_manifest(folder, lambda manifest: replace(manifest, started_at="2026-11-26T02:00:00.000Z"))
    lines, _ = auditor(capsys, "status", "audits")
    assert "result: killed before its end; 0 of 1 device has an answer" in lines
    assert lines[-2:] == [
        "next: continue the run; the next run with --resume does, too", f"  auditor resume audits/{folder.name}",
    ]  # fmt: skip
    conclude(directory / NEWEST, 1, "too_many_failed")
    edit_manifest(
        directory / NEWEST, lambda manifest: replace(manifest, state="partial", devices=DeviceCounts(ok=2, failed=1))
    )
    lines = auditor(capsys, "status", f"audits/{NEWEST}")[0]
    assert "next: see which devices failed, remove the cause, and retry them" in lines
    assert any(re.fullmatch(r"last success: 20261122T020000Z-nightly \(\d+ days ago\)", line) for line in lines)
    assert "no run named 'x'" in auditor(capsys, "status", "--name", "x", code=2)[1]


def test_status_says_what_continues_a_run_that_was_stopped(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conclude(directory / NEWEST, 3, "unreachable_account")
    edit_manifest(
        directory / NEWEST,
        lambda manifest: replace(manifest, state="aborted", devices=replace(manifest.devices, pending=1)),
    )
    step = "check the endpoint, the network and the proxy, and continue the run; the next run with --resume does, too"
    assert f"next: {step}" in auditor(capsys, "status")[0]
    add_run(directory, 26, DAYS[-1])
    older = auditor(capsys, "status", f"audits/{NEWEST}")[0]
    assert f"next: {step.removesuffix('; the next run with --resume does, too')}" in older, "the newer one is found"


def test_status_says_that_a_run_in_progress_records_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = directory / "20261126T020000Z-nightly"
    running(folder, [named(0)], [])
    status = ("status", f"audits/{folder.name}")
    with RunLock(folder):
        assert "result: in progress; 0 of 1 device has an answer" in auditor(capsys, *status)[0]
        for path in folder.iterdir():
            os.utime(path, (time.time() - 400,) * 2)
        (folder / MANIFEST).touch()
        line = "result: in progress; 0 of 1 device has an answer; nothing recorded for 6 min: see its log"
        assert line in auditor(capsys, *status)[0]
        problem = 'account "eu": no usable answer; last error: auditor.Unreachable: \x1b[31m refused'
        edit_manifest(folder, lambda manifest: replace(manifest, problems=(problem,)))
        lines = auditor(capsys, *status)[0]
        assert line.removesuffix(": see its log") in lines, "the reason is below it"
        assert "problem: " + problem.replace("\x1b", "\\x1b") in lines
        edit_manifest(folder, lambda manifest: replace(manifest, problems=()))
        edit_manifest(folder, lambda manifest: replace(manifest, discovery=(DiscoveryInfo("eu", "pending"),)))
        assert "lists: eu: its devices are being listed" in auditor(capsys, *status)[0]
        states = folder / ".selection" / "0" / "states.jsonl"
        states.parent.mkdir(parents=True)
        states.touch()
        assert "result: in progress; 0 of 1 device has an answer" in auditor(capsys, *status)[0]


def test_a_killed_run_has_the_devices_of_its_files_and_is_called_killed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = directory / "20261126T020000Z-nightly"
    running(folder, [named(0), named(1)], [ok(named(0), ("ble", "1.0"))])
    edit_manifest(
        folder,
        lambda manifest: replace(
            manifest,
            started_at="2026-11-26T02:00:00.000Z",
            devices=DeviceCounts(pending=2),  # as of before the last answer
            changes=read_manifest(directory / NEWEST).changes,
        ),
    )
    lines, _ = auditor(capsys, "status")
    assert "result: killed before its end; 1 of 2 devices have an answer" in lines
    assert any(line.startswith(f"last success: {NEWEST} (") for line in lines)
    assert not any(line.startswith("changes: ") for line in lines), "they are those of the session before"
    assert "devices: killed: 2 devices: 1 ok, 0 empty, 0 not found, 0 failed, 1 pending" in lines
    assert auditor(capsys, "runs")[0][1].split()[1:5] == ["killed", "2", "0", "1"]
    listed = json.loads("\n".join(auditor(capsys, "runs", "--format", "json", "--limit", "1")[0]))
    validate("runs", listed)
    (row,) = listed["runs"]
    history = json.loads("\n".join(auditor(capsys, "history", "--format", "json")[0]))
    validate("history", history)
    assert history["runs"][-1]["state"] == "killed"
    lines, errors = auditor(capsys, "inventory", f"audits/{folder.name}")
    assert any(line.startswith("killed: 2 devices: 1 ok") for line in lines)
    assert f"{folder.name}: killed: 0 devices failed, 1 pending" in errors
    assert (row["state"], row["ok"], row["pending"]) == ("killed", 1, 1)
    assert any(line.split()[2:7] == ["?", "killed", "2", "1", "0"] for line in auditor(capsys, "history")[0])
    with RunLock(folder):
        assert auditor(capsys, "runs")[0][1].split()[1] == "running"
    note = f"{folder.name} is newer, and was killed before its end"
    for words in (
        *(("inventory", path) for path in ("audits", "audits/last")),
        ("diff", "--since", "last~1"),
        ("diff", "--last"),
        ("device", "device0000", "audits"),
    ):
        assert auditor(capsys, *words)[1].count(note) == 1, words
    assert note not in auditor(capsys, "inventory", "audits/last~1")[1], "an older run is meant"


def test_the_duration_of_a_resumed_run_says_that_it_has_pauses(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, finished_at="2026-11-25T04:00:00.000Z"))
    assert auditor(capsys, "status")[0][1].endswith("ended: 2026-11-25 04:00 UTC (2 h)")
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, resumed_at=("2026-11-25T03:59:00.000Z",)))
    assert auditor(capsys, "status")[0][1].endswith("ended: 2026-11-25 04:00 UTC (2 h with pauses)")
    assert main(["report", f"audits/{NEWEST}", "-o", "page.html"]) == 0
    assert "requests in 2 h with pauses" in Path("page.html").read_text()


def test_status_says_that_no_run_has_started_since_long(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "overdue: usually a run starts every 24 h; look at what starts it, and at its log"
    assert sentence in auditor(capsys, "status")[0]
    assert not any(line.startswith("overdue: ") for line in auditor(capsys, "status", "audits/last~1")[0])
    today = f"{datetime.now(UTC) - timedelta(hours=40):%Y-%m-%dT%H:%M:%S.000Z}"
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, started_at=today))
    assert not any(line.startswith("overdue: ") for line in auditor(capsys, "status")[0])


def test_a_part_of_the_fleet_is_named_where_runs_are_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=3)))
    assert "complete, not the whole fleet" in auditor(capsys, "runs")[0][1]
    assert "part: covers only the first 3 devices of its fleet (--limit)" in auditor(capsys, "status")[0]


def test_changes_since_a_run_are_counted_by_version(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = auditor(capsys, "diff", "--since", "2026-11-22")
    assert [line.split() for line in lines] == [
        ["product", "key", "module", "name", "change", "old", "version", "new", "version", "devices"],
        ["p1", "ble", "upgraded", "1.0", "1.1", "2"],
        ["p1", "ble", "upgraded", "1.0", "1.2", "1"],
        ["p1", "left", "1"],
    ]
    assert "3 upgraded, 1 left, from the changes of 3 runs" in errors
    lines, _ = auditor(
        capsys, "diff", "audits", "--since", "last~3", "--devices", "--changed", "left", "--format", "csv"
    )
    assert lines[1:] == ["demo,p1,,device0003,iot0003,,left,,"]
    document = json.loads("".join(auditor(capsys, "diff", "--since", "last~1", "--format", "json")[0]))
    assert (document["old"]["run"], document["new"]["run"]) == ("20261124T020000Z-nightly", NEWEST)
    assert document["counts"]["upgraded"] == sum(row["devices"] for row in document["versions"])
    assert "--fail-on matched: 1 left" in auditor(capsys, "diff", "--since", "last~3", "--fail-on", "left", code=4)[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--since", "last"), "nothing is newer"),
        (("--since", "yestreday"), "is no run; give its folder, or last, last~3"),
        (("--since", "last~1", "--last"), "without --last"),
        (("--since", "last~1", "--changed", "grew"), "use upgraded, downgraded"),
        (("--last", "--module", "blee"), "no device reports the module blee; did you mean ble?"),
        (("--since", "last~1", "--product", "p2"), "no device is of the product p2; there is p1"),
        (("--since", "last~1", "--where", "site=a1"), "where: no device has site"),
        (("--since", "last~1", "--group-by", "modul_name"), "did you mean module_name?"),
        (("--last", "--sort", "upgrade"), "did you mean upgraded?"),
        (("--last", "--devices", "--group-by", "change"), "give one of them"),
        (("--since", "last~1", "--fail-on", "added"), "--since counts upgraded"),
    ],
)
def test_wrong_arguments_of_diff_are_refused(
    directory: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in auditor(capsys, "diff", *arguments, code=2)[1]


@pytest.mark.slow
def test_diff_lists_what_changed_and_with_all_the_rest(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = f"audits/{NEWEST}", f"audits/{NEWEST[:7]}4{NEWEST[8:]}"
    same = auditor(capsys, "diff", new, old, "--format", "csv")[0]
    assert len(same) == 2
    assert len(auditor(capsys, "diff", "audits/last~1", "audits/last", "--format", "csv")[0]) == 2
    (directory / "20261126T020000Z-nightly").mkdir()
    add_run(directory, 26, DAYS[3])
    assert len(auditor(capsys, "diff", "--last", "--format", "csv")[0]) == 1
    assert len(auditor(capsys, "diff", "--last", "--all", "--format", "csv")[0]) == 2


@pytest.mark.slow
def test_a_device_is_shown_over_all_runs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors = auditor(capsys, "device", "device0000", "--format", "csv")
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["module_version"] for row in rows] == ["1.1", "1.0", "1.1", "1.0"]
    assert rows[0]["run"] == NEWEST
    assert [bool(row["since"]) for row in rows] == [True, True, True, False]
    assert (
        "where no start of a version is shown, it is older than the recorded changes, which begin at 2026-11-22"
        in errors
    )
    assert "flaps between 1.0 and 1.1" in errors
    assert "rolled back from 1.1 to 1.0" in errors
    assert "did you mean device0000" in auditor(capsys, "device", "device000", code=2)[1]
    for day in (23, 24, 25):
        (directory / f"202611{day}T020000Z-nightly" / CHANGES).unlink()
    assert "recorded no changes" in auditor(capsys, "device", "device0000")[1]


def test_sql_reads_all_runs_and_statements_from_files_and_standard_input(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = "SELECT run, count(*) AS devices FROM devices GROUP BY run ORDER BY run"
    expected = [
        "run,devices",
        *(f"202611{day}T020000Z-nightly,{count}" for day, count in ((22, 4), (23, 4), (24, 3), (25, 3))),
    ]
    Path("q.sql").write_text(statement)
    for arguments in (("--runs", "audits", statement), ("--runs", "audits", "-f", "q.sql")):
        assert auditor(capsys, "sql", *arguments, "--format", "csv")[0] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT count(*) AS n FROM devices"))
    assert auditor(capsys, "sql", "audits", "-", "--format", "csv")[0] == ["n", "3"]
    assert (
        "give RUN, --runs DIRECTORY or --dataset DIRECTORY, and a statement"
        in auditor(capsys, "sql", "audits", code=2)[1]
    )
    assert "no.sql: cannot be read" in auditor(capsys, "sql", "audits", "-f", "no.sql", code=2)[1]


def test_a_directory_with_a_newer_failed_run_says_which_run_is_read(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(directory / NEWEST, lambda manifest: replace(manifest, state="partial"))
    errors = auditor(capsys, "sql", "audits", "SELECT count(*) FROM devices")[1]
    assert (
        f"reading audits/20261122T020000Z-nightly, the newest successful run; {NEWEST} is newer, and is partial"
        in errors
    )
    note = f"note: {NEWEST} is partial; the newest successful run is 20261122T020000Z-nightly"
    for arguments in (("diff", "--since", "last~3"), ("diff", "--last")):
        assert note in auditor(capsys, *arguments)[1].splitlines()


def test_a_night_without_an_answer_leaves_shares_and_rollouts_as_they_were(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = auditor(capsys, "history", "--rollouts", "--format", "json")[0]
    folder = build(directory / "20261126T020000Z-nightly", [named(0)], [failed(named(0))]).folder
    edit_manifest(folder, lambda manifest: replace(manifest, state="aborted", started_at="2026-11-26T02:00:00.000Z"))
    table, errors = auditor(capsys, "history", "--rollouts", "--format", "json")
    assert json.loads("".join(table))["rollouts"] == json.loads("".join(before))["rollouts"]
    assert json.loads("".join(table))["run"] == NEWEST
    assert f"reading audits/{NEWEST}, the newest successful run; {folder.name} is newer, and is aborted" in errors
    lines, _ = auditor(capsys, "history")
    assert any(line.endswith("in the run of 2026-11-25 02:00") for line in lines)
    assert not any("reported by 0 devices" in line for line in lines)
    assert not any(line.startswith("rollouts:") for line in auditor(capsys, "status")[0])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("runs", ("runs",)),
        ("changes", ("diff", "--since", "last~3")),
        ("changes", ("diff", "--since", "last~2", "--devices")),
        ("timeline", ("device", "device0000")),
        ("timeline", ("device", "iot0002")),
    ],
)
def test_json_is_valid_by_its_schema(
    directory: Path, capsys: pytest.CaptureFixture[str], kind: str, arguments: tuple[str, ...]
) -> None:
    validate(kind, json.loads("".join(auditor(capsys, *arguments, "--format", "json")[0])))
