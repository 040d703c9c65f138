"""`auditor resume`, `run --resume` and deadlines: killed, interrupted and late runs."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from auditor.log import LINE_EVENTS
from auditor.runs.verify import verify_run
from tests.cli.conftest import Auditor, Platform, StartPlatform, command
from tests.cli.test_run import counts_of, manifest_of, wait_for_lines

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in the background."""
    running: list[subprocess.Popen[str]] = []

    def new(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, *command(arguments)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield new
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def slow(start_platform: StartPlatform) -> Platform:
    """A platform that answers 90 devices in about a second and a half."""
    return start_platform("--devices", 90, "--per-second", 60)


def ended(process: subprocess.Popen[str], sent: signal.Signals) -> tuple[int, str, str]:
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    return process.returncode, out.strip(), err


def assert_whole(folder: Path, devices: int) -> None:
    manifest = manifest_of(folder)
    counts = counts_of(manifest)
    assert manifest["state"] == "complete"
    assert counts["ok"] + counts["empty"] + counts["not_found"] == devices
    lines = [json.loads(line) for line in (folder / "devices.jsonl").read_bytes().splitlines()]
    assert len({line["iot_id"] for line in lines}) == len(lines) == devices
    assert verify_run(folder) == []


@pytest.mark.slow
def test_a_run_ended_by_sigterm_says_how_to_resume_and_can_be_resumed(
    auditor: Auditor, tmp_path: Path, slow: Platform, start: Start
) -> None:
    process = start("run", slow.settings, "--out", "runs")
    wait_for_lines(tmp_path / "runs", 20)
    code, out, err = ended(process, signal.SIGTERM)
    left = counts_of(manifest_of(tmp_path / out))["pending"]
    assert (code, left > 0) == (130, True)
    assert f"{left} devices remain; resume with: auditor resume {out}" in err
    done = auditor("resume", out)
    assert (done.returncode, done.stdout.strip()) == (0, out), done.stderr
    assert f"resuming {out}: {left} of 90 devices remain" in done.stderr
    assert_whole(tmp_path / out, 90)


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), ("nohup",)])
def test_a_hangup_ends_a_run_like_sigterm_but_not_under_nohup(
    tmp_path: Path, slow: Platform, start: Start, before: tuple[str, ...]
) -> None:
    process = start("run", slow.settings, "--out", "runs", before=before)
    folder = wait_for_lines(tmp_path / "runs", 20)
    code, _, err = ended(process, signal.SIGHUP)
    if before:
        assert code == 0, err
        assert_whole(folder, 90)
    else:
        assert code == 130, err
        assert manifest_of(folder)["error"] == "interrupted by SIGHUP"
        assert verify_run(folder) == []


def test_run_with_resume_resumes_a_killed_run_and_then_starts_a_new_one(
    auditor: Auditor, tmp_path: Path, slow: Platform, start: Start
) -> None:
    process = start("run", slow.settings, "--out", "runs")
    folder = wait_for_lines(tmp_path / "runs", 20)
    process.kill()
    process.wait(10)
    assert manifest_of(folder)["state"] == "running"
    test = auditor("run", slow.settings, "--out", "runs", "--resume", "--limit", 7)
    assert (test.returncode, tmp_path / test.stdout.strip() != folder) == (0, True), "another scope"
    done = auditor("run", slow.settings, "--out", "runs", "--resume")
    assert (done.returncode, tmp_path / done.stdout.strip()) == (0, folder), done.stderr
    assert_whole(folder, 90)
    anew = auditor("run", slow.settings, "--out", "runs", "--resume", "--limit", 3)
    assert anew.returncode == 0
    assert tmp_path / anew.stdout.strip() != folder


@pytest.mark.slow
def test_a_killed_run_blocks_nothing_and_a_running_one_does(
    auditor: Auditor, tmp_path: Path, start_platform: StartPlatform, start: Start
) -> None:
    platform = start_platform("--devices", 2000, "--per-second", 50)
    killed = start("run", platform.settings, "--out", "runs")
    wait_for_lines(tmp_path / "runs", 5)
    killed.kill()
    killed.wait(10)
    start("run", platform.settings, "--out", "runs")
    while len(list((tmp_path / "runs").glob("2*"))) < 2:
        time.sleep(0.02)
    for arguments, said in (
        (("run", platform.settings, "--out", "runs"), 'an audit named "simulated" is running'),
        (("resume", "runs"), "another process is writing this run"),
    ):
        refused = auditor(*arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_resume_of_a_complete_run_says_so_and_changes_nothing(auditor: Auditor, platform: Platform) -> None:
    folder = Path(auditor("run", platform.settings).stdout.strip())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = auditor("resume", folder)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder))
    assert "is complete; nothing to resume" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_resume_accepts_another_quota_but_not_another_platform(
    auditor: Auditor, tmp_path: Path, slow: Platform, start: Start
) -> None:
    process = start("run", slow.settings, "--out", "runs")
    wait_for_lines(tmp_path / "runs", 5)
    _, folder, _ = ended(process, signal.SIGINT)
    text = slow.settings.read_text()
    other = slow.settings.with_name("other.toml")
    other.write_text(text.replace(slow.endpoint, "http://127.0.0.1:1/"))
    refused = auditor("resume", folder, "--settings", other)
    assert refused.returncode == 2
    assert "endpoint changed from" in refused.stderr
    other.write_text("concurrency = 3\n" + text.replace("calls_per_second = 60.0", "calls_per_second = 55.0"))
    done = auditor("resume", folder, "--settings", other)
    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path / folder, 90)
    rate: Any = manifest_of(tmp_path / folder)["rate"]
    assert rate["target"] == 55


@pytest.mark.slow
def test_a_run_for_3_seconds_ends_in_time_and_resume_completes_it(
    auditor: Auditor, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 140, "--per-second", 50)
    late = auditor("run", platform.settings, "--for", "3s")
    folder = Path(late.stdout.strip())
    manifest = manifest_of(folder)
    assert (late.returncode, manifest["state"], manifest["error"]) == (1, "partial", "the deadline was reached")
    assert counts_of(manifest)["ok"] > 0
    began = datetime.fromisoformat(str(manifest["started_at"])).timestamp()
    assert (folder / "run.json").stat().st_mtime < began + 3 + 1.5
    assert verify_run(folder) == []
    in_a_minute = time.strftime("%H:%M:%S", time.localtime(time.time() + 60))
    done = auditor("resume", folder, "--deadline", in_a_minute)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, 140)


@pytest.mark.parametrize(
    ("flag", "value", "advice"),
    [
        ("--for", "3", "add one, such as 3h"),
        ("--for", "0s", "give one such as"),
        ("--deadline", "25:00", "give a time of day"),
        ("--deadline", "2001-01-01T00:00", "give a time of day"),
    ],
)
def test_an_invalid_time_is_one_sentence_and_creates_nothing(
    auditor: Auditor, tmp_path: Path, platform: Platform, *, flag: str, value: str, advice: str
) -> None:
    done = auditor("run", platform.settings, f"{flag}={value}", "--out", "runs")
    assert done.returncode == 2
    assert done.stderr.startswith(f"auditor: {flag} {value!r}")
    assert done.stderr.count("\n") == 1
    assert advice in done.stderr
    assert not (tmp_path / "runs").exists()


def test_resume_of_another_folder_is_refused(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere"):
        done = auditor("resume", path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert path in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_log_is_one_format(auditor: Auditor, tmp_path: Path, slow: Platform, start: Start, log_format: str) -> None:
    process = start("run", slow.settings, "--out", "runs")
    folder = wait_for_lines(tmp_path / "runs", 10)
    process.kill()
    process.wait(10)
    lines = (folder / "devices.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "devices.jsonl").write_bytes(b"".join([*lines[:3], b"spoilt\n", *lines[4:]]))
    done = auditor("resume", folder, "--log-level", "debug", "--log-format", log_format)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, 90)
    words = ["resuming", "90/90", "OK", "exit"]
    if log_format == "json":
        logged = [json.loads(line) for line in done.stderr.splitlines()]
        assert [(line["level"], line["lines"]) for line in logged if line["event"] == "lines_dropped"] == [
            ("warning", 1)
        ]
        assert all(line["timestamp"].endswith("Z") and line["level"] and line["event"] for line in logged)
        printed = dict.fromkeys(line["event"] for line in logged if line["event"] in LINE_EVENTS)
        assert list(printed) == ["resuming", "progress", "summary", "exit"]
    else:
        text = done.stderr.splitlines()
        firsts = [re.sub(r"^\d{4}-\d\d-\d\dT[\d:]{8}Z ", "", line).split()[0] for line in text]
        assert [first for first in firsts if first in words] == words
        assert [line for line in text if "dropped" in line and "[warning" in line]
        assert not [line for line in text if line.startswith("{") or "\x1b" in line]


@pytest.mark.parametrize(
    ("arguments", "code"), [(("run", "missing.toml"), 2), (("run", "missing.toml", "--no-such-flag"), 2), (("run",), 2)]
)
def test_errors_are_json_lines_too(auditor: Auditor, arguments: tuple[str, ...], code: int) -> None:
    done = auditor(*arguments, "--log-format=json")
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert (found["event"], found["level"], found["exit_code"]) == ("command_failed", "error", code)
    assert found["message"].startswith("auditor: ")
