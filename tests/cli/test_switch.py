"""`auditor run`, `resume` and `notify` with a dead man's switch and [[notify]]."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from auditor.cli.execution import SwitchReporter, _finish
from auditor.engine.progress import AuditResult
from auditor.hooks import runner
from auditor.hooks.prepare import HookConfig
from auditor.hooks.runner import HookResults
from auditor.runs.manifest import read_manifest
from auditor.runs.selection_info import ExitReason
from tests import forked
from tests.cli.conftest import Auditor, Platform, StartPlatform
from tests.database import run_interrupted_query
from tests.hooks.healthchecks import CHECK, Check, healthchecks
from tests.hooks.receiver import TOKEN, receiving
from tests.runs.run_folders import every_status


def with_switch(platform: Platform, check: Check, more: str = "") -> Path:
    path = platform.settings.with_name("switch.toml")
    path.write_text(f'ping = {{ file = "{check.file}" }}\n{more}\n{platform.settings.read_text()}')
    return path


@pytest.mark.slow
def test_a_run_reports_its_start_and_its_success_and_a_trial_reports_nothing(
    auditor: Auditor, platform: Platform, tmp_path: Path
) -> None:
    with healthchecks() as check:
        settings = with_switch(platform, check)
        assert auditor("run", settings, "--limit", 3).returncode == 0
        assert auditor("run", settings, "--out", tmp_path / "other").returncode == 0
        assert check.pings == []
        done = auditor("run", settings, "--out", settings.parent / "audits")
        assert done.returncode == 0, done.stderr
    assert (check.signals, check.state) == (["start", "success"], "up")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("exit 0")
    reason, _, *lines = check.last_body.splitlines()
    assert reason == last
    assert any(line.startswith("OK ") for line in lines)
    folder = tmp_path / done.stdout.strip()
    stored = json.loads((folder / "run.json").read_text())["settings"]["ping"]
    assert stored == {"file": str(check.file)}
    assert CHECK not in done.stderr + (folder / "run.json").read_text()


def test_wrong_settings_are_a_failure_with_the_sentence(auditor: Auditor, platform: Platform) -> None:
    with healthchecks() as check:
        for more in ("at_once = 3", "concurrency = = 3", "report = { html = 'none/x.html' }"):
            done = auditor("run", with_switch(platform, check, more))
            assert (done.returncode, done.stdout) == (2, "")
            assert check.signals[-2:] == ["start", "fail"]
            assert done.stderr.splitlines()[-1] == f"auditor: {check.last_body.splitlines()[0]}"
    assert check.state == "down"


@pytest.mark.parametrize(
    ("arguments", "more", "signals"),
    [
        (("--limit", 3), "at_once = 3", []),
        (("--out", "audits"), "at_once = 3", ["start", "fail"]),
        (("--limit", 0), "", ["start", "fail"]),
        (("--deadline", "25:00"), "", ["start", "fail"]),
        (("--for", "1x"), "", ["start", "fail"]),
        (("--no-such-flag",), "", []),
    ],
)
def test_wrong_settings_and_values_are_a_failure_unless_the_run_is_a_trial(
    auditor: Auditor, platform: Platform, arguments: tuple[object, ...], more: str, signals: list[str]
) -> None:
    with healthchecks() as check:
        own = platform.settings.parent / "audits"
        words = [own if word == "audits" else word for word in arguments]
        done = auditor("run", with_switch(platform, check, more), *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert check.signals == signals


@pytest.mark.slow
def test_an_audit_that_ends_otherwise_reports_its_exit_code_and_a_resume_the_next(
    auditor: Auditor, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    with healthchecks() as check:
        done = auditor("run", with_switch(platform, check), "--for", "1s")
        assert done.returncode == 1, done.stderr
        assert (check.signals, check.state) == (["start", "1"], "down")
        assert check.last_body.startswith("exit 1 (too_many_pending): ")
        again = auditor("resume", done.stdout.strip())
        assert again.returncode == 0, again.stderr
    assert (check.signals[2:], check.state) == (["start", "success"], "up")


@pytest.mark.parametrize(
    ("number", "signals", "state"),
    [(signal.SIGTERM, ["start", "fail"], "down"), (signal.SIGKILL, ["start"], "started")],
)
def test_a_signal_is_a_failure_and_a_killed_process_is_silent(
    start_platform: StartPlatform, tmp_path: Path, number: signal.Signals, signals: list[str], state: str
) -> None:
    platform = start_platform("--devices", 600, "--per-second", 20)
    with healthchecks() as check:
        with forked.serving("run", with_switch(platform, check), cwd=tmp_path) as (process, _):
            while not check.pings or not list(tmp_path.rglob("devices.jsonl")):
                assert process.poll() is None
            process.send_signal(number)
            code = process.wait(20)
        assert (check.signals, check.state) == (signals, state)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert "interrupted" in check.last_body.splitlines()[0]


def test_a_signal_during_a_query_is_reported_as_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[str] = []
    switch = SimpleNamespace(fail=lambda reason, _lines: reports.append(reason))
    reporter = SwitchReporter()
    monkeypatch.setattr(reporter, "_switch", switch)
    with pytest.raises(RuntimeError) as caught:
        run_interrupted_query()
    reporter.fail(caught.value)
    assert reports == ["interrupted by a signal"]


def test_a_switch_that_refuses_changes_neither_the_exit_code_nor_the_last_line(
    auditor: Auditor, platform: Platform
) -> None:
    with healthchecks(404) as check:
        done = auditor("run", with_switch(platform, check))
        assert done.returncode == 0, done.stderr
        *_, note, last = done.stderr.splitlines()
        refused = "the dead man's switch answered 404: the request was rejected"
        assert note == f"note: the dead man's switch was not reached: {refused}"
        assert last.startswith("exit 0")
    missing = auditor("run", with_switch(platform, Check(file=Path("/no/such/file"))))
    assert missing.returncode == 2
    assert "ping: /no/such/file: cannot be read" in missing.stderr


def test_every_place_receives_a_test_message(auditor: Auditor, platform: Platform) -> None:
    with healthchecks() as check, receiving() as receiver, receiving(401) as refusing:
        more = refusing.toml().replace('"hook"', '"other"')
        settings = platform.settings.with_name("notify.toml")
        settings.write_text(
            f'ping = {{ file = "{check.file}" }}\n{platform.settings.read_text()}\n{receiver.toml()}\n{more}'
        )
        done = auditor("notify", settings, "--test")
        assert done.returncode == 3, done.stderr
        assert done.stdout.splitlines() == [
            "ok   notify hook: delivered",
            "FAIL notify other: the webhook answered 401: the request was rejected",
            "ok   ping: reached",
        ]
        assert (receiver.event["type"], receiver.event["data"]) == ("test", None)
        assert (check.signals, check.state) == (["log"], "new")
        done = auditor("notify", settings, "--test", "--to", "hook")
        assert (done.returncode, done.stdout, check.signals) == (0, "ok   notify hook: delivered\n", ["log"])
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "notify needs --test; messages about a run are sent by auditor run and auditor resume"),
        (("--test",), "has neither [[notify]] nor ping"),
        (("--test", "--to", "ops"), "--to ops: is not in "),
    ],
)
def test_a_test_without_a_place_is_refused(
    auditor: Auditor, platform: Platform, arguments: tuple[str, ...], sentence: str
) -> None:
    done = auditor("notify", platform.settings, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_a_byte_order_mark_and_a_wrong_address_for_traces_cost_no_report(auditor: Auditor, platform: Platform) -> None:
    with healthchecks() as check:
        settings = with_switch(platform, check)
        settings.write_bytes(b"\xef\xbb\xbf" + settings.read_bytes())
        done = auditor("run", settings, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1:4318"})
    assert done.returncode == 0, done.stderr
    assert (check.signals, check.state) == (["start", "success"], "up")
    assert done.stderr.startswith("note: no traces are sent: OTEL_EXPORTER_OTLP_ENDPOINT: is not the address")


@pytest.mark.parametrize(("exit_code", "order"), [(130, ["switch", "hooks", "again"]), (1, ["hooks", "switch"])])
def test_after_a_signal_the_switch_is_reported_to_before_the_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, order: list[str]
) -> None:
    """What sends the signal, such as systemd, kills the process some time later."""
    done: list[str] = []

    class Recording(SwitchReporter):
        def finish(self, exit_code: int, reason: str) -> None:
            done.append("again" if "switch" in done else "switch")
            assert reason.startswith(f"exit {exit_code} (interrupted)")

    def run_hooks(_run: Path, _config: HookConfig, *, exit_code: int) -> HookResults:
        done.append("hooks")
        return HookResults(exit_code)

    monkeypatch.setattr(runner, "run_hooks", run_hooks)
    folder = every_status(tmp_path / "run").folder
    reason = ExitReason("interrupted", "stopped by a signal")
    manifest = replace(read_manifest(folder), exit_code=exit_code, exit_reason=reason)
    assert _finish(AuditResult(folder, manifest, exit_code), 1.0, HookConfig(), Recording()) == exit_code
    assert done == order
