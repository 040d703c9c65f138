"""`auditor run` and `auditor resume` with [policy], [report] and [[notify]]; and `auditor metrics`."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import standardwebhooks
from prometheus_client.parser import text_string_to_metric_families

from tests import forked
from tests.cli.conftest import Auditor, Platform, StartPlatform, command
from tests.hooks.receiver import TOKEN, Receiver, receiving

SIGNING = "whsec_UzNDUkVULXRoYXQtc2lnbnMtMDEyMzQ1Njc4OQ=="

VIOLATED = """
[[rule]]
name = "latest ble"
module = "*"
minimum = "99999.0"
"""

REPORT = """
[report]
html = "fleet.html"
excel = true
metrics = "auditor.prom"
"""


def settings_with(platform: Platform, *tables: str, rules: str | None = None) -> Path:
    """The settings that the platform wrote, with more tables."""
    path = platform.settings.with_name("with.toml")
    tables = (*tables, '[policy]\nfile = "rules.toml"\n') if rules is not None else tables
    (path.parent / "rules.toml").write_text(rules or "")
    path.write_text("\n".join((platform.settings.read_text(), *tables)))
    return path


def notify(when: str = "always") -> str:
    return f'[[notify]]\nname = "hook"\nwebhook = {{ env = "HOOK" }}\nsecret = {{ env = "SIGNING" }}\nwhen = "{when}"\n'


def everything_under(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_all_hooks_run_after_an_audit(auditor: Auditor, platform: Platform) -> None:
    with receiving(503, 200) as receiver:
        settings = settings_with(platform, REPORT, notify(), rules=VIOLATED)
        env = {"HOOK": receiver.address, "SIGNING": SIGNING}
        done = auditor("run", settings, "--log-level", "debug", env=env)
    assert done.returncode == 4, done.stderr
    folder = settings.parent.parent / done.stdout.strip()
    assert re.search(r"^policy +1 rule, 1 violated: latest ble \(error\): ", done.stderr, re.MULTILINE)
    assert auditor("verify", folder).returncode == 0
    assert (folder / "inventory.xlsx").is_file()
    assert (settings.parent / "fleet.html").is_file()
    text = (settings.parent / "auditor.prom").read_text()
    manifest = json.loads((folder / "run.json").read_text())
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    states = {s.labels["state"]: s.value for s in samples if s.name == "auditor_devices"}
    assert states == manifest["devices"]
    (violations,) = [
        s.value for s in samples if s.name == "auditor_policy_violations" and s.labels["severity"] == "error"
    ]
    assert_posted_and_signed(receiver, manifest, violations)
    said = done.stdout + done.stderr
    shown = everything_under(folder, settings.parent) + said.encode()
    assert TOKEN.encode() not in shown
    assert SIGNING.encode() not in shown


def assert_posted_and_signed(receiver: Receiver, manifest: dict[str, object], violations: float) -> None:
    """Twice the same, for the first was refused; and signed as the documentation says."""
    assert len(receiver.bodies) == 2
    assert receiver.bodies[0] == receiver.bodies[1]
    assert receiver.headers[0]["webhook-id"] == receiver.headers[1]["webhook-id"] == receiver.event["id"]
    standardwebhooks.Webhook(SIGNING).verify(receiver.bodies[1], receiver.headers[1])
    assert (receiver.event["type"], receiver.event["timestamp"]) == ("run.finished", manifest["finished_at"])
    payload = receiver.payload
    assert (payload["exit_code"], payload["state"], payload["devices"]) == (4, manifest["state"], manifest["devices"])
    assert payload["requests"] == manifest["requests"]
    assert payload["policy"]["rules"][0]["violated"] == violations > 0


def test_a_failing_hook_does_not_fail_the_audit(auditor: Auditor, platform: Platform) -> None:
    with receiving(401) as receiver:
        settings = settings_with(platform, notify())
        done = auditor("run", settings, "--log-level", "debug", env={"SIGNING": SIGNING, "HOOK": receiver.address})
        assert len(receiver.bodies) == 1
    assert done.returncode == 0, done.stderr
    note = (
        "a message was not delivered: hook: the webhook answered 401: the request was rejected; the run itself is fine"
    )
    assert f"hooks    {note}" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    folder = Path(settings.parent.parent, done.stdout.strip())
    assert auditor("verify", folder).returncode == 0
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in everything_under(folder)


@pytest.mark.slow
def test_a_chat_that_refuses_is_reported_without_its_address(auditor: Auditor, platform: Platform) -> None:
    with receiving(401) as receiver:
        table = '[[notify]]\nname = "ops"\naddress = { env = "CHAT" }\n'
        settings = settings_with(platform, table)
        address = receiver.address.replace("http://", "json://")
        done = auditor("run", settings, "--log-level", "debug", env={"CHAT": address})
        assert len(receiver.bodies) == 1
    assert done.returncode == 0, done.stderr
    note = "a message was not delivered: ops: the service answered 401; the run itself is fine"
    assert f"hooks    {note}" in done.stderr.splitlines()
    folder = Path(settings.parent.parent, done.stdout.strip())
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in everything_under(folder)


@pytest.mark.slow
def test_with_problems_only_a_good_run_is_not_posted(auditor: Auditor, platform: Platform) -> None:
    with receiving() as receiver:
        settings = settings_with(platform, notify("problems"))
        assert auditor("run", settings, env={"SIGNING": SIGNING, "HOOK": receiver.address}).returncode == 0
        assert receiver.bodies == []
        settings = settings_with(platform, notify("problems"), rules=VIOLATED)
        assert auditor("run", settings, env={"SIGNING": SIGNING, "HOOK": receiver.address}).returncode == 4
        assert len(receiver.bodies) == 1


@pytest.mark.parametrize("name", ["run", "check"])
@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('[policy]\nfile = "none.toml"', "none.toml: cannot be read: No such file or directory"),
        ('[report]\nhtml = "none/fleet.html"', "none is not a directory; make it, or give another path"),
        (notify(), 'with.toml: notify "hook": webhook: the environment variable HOOK is not set, or empty'),
    ],
)
def test_broken_hooks_are_refused_before_the_audit(
    auditor: Auditor, platform: Platform, name: str, table: str, sentence: str
) -> None:
    done = auditor(name, settings_with(platform, table), env={"SIGNING": SIGNING})
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert not list(platform.settings.parents[1].rglob("run.json"))


@pytest.mark.slow
def test_a_resumed_run_uses_the_hooks_of_its_own_settings(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    with receiving() as receiver:
        report = '[report]\nexcel = true\nmetrics = "auditor.prom"\n'
        settings = settings_with(platform, report, notify(), rules=VIOLATED)
        env = {"HOOK": receiver.address, "SIGNING": SIGNING}
        first = auditor("run", settings, "--for", "1s", env=env)
        assert first.returncode == 1, first.stderr
        assert receiver.payload["state"] == "partial"
        assert receiver.payload["exit_code"] == 1
        folder = Path(settings.parent.parent, first.stdout.strip())
        assert "resume with: auditor resume" in first.stderr
        again = auditor("resume", folder, env=env)
    assert again.returncode == 4, again.stderr
    assert len(receiver.bodies) == 2
    assert (receiver.payload["state"], receiver.payload["devices"]["pending"]) == ("complete", 0)
    text = (settings.parent / "auditor.prom").read_text()
    assert 'state="complete"} 1.0' in text
    assert "auditor_last_success_timestamp_seconds" in text
    assert auditor("verify", folder).returncode == 0


@pytest.mark.slow
def test_a_message_whose_address_is_missing_is_sent_by_a_resume_that_has_it(
    auditor: Auditor, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    with receiving() as receiver:
        settings = settings_with(platform, notify())
        env = {"SIGNING": SIGNING, "HOOK": receiver.address}
        folder = Path(settings.parent.parent, auditor("run", settings, "--for", "1s", env=env).stdout.strip())
        assert len(receiver.bodies) == 1
        assert TOKEN.encode() not in everything_under(folder)
        other = auditor("resume", folder, "--for", "1s", env={"SIGNING": SIGNING})
        assert "note: a message will not be sent: " in other.stderr
        assert len(receiver.bodies) == 1
        done = auditor("resume", folder, env=env)
        assert done.returncode == 0, done.stderr
        assert (len(receiver.bodies), receiver.payload["state"]) == (2, "complete")


@pytest.mark.slow
def test_other_hooks_do_not_prevent_a_resume(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    first = auditor("run", settings_with(platform), "--for", "1s")
    assert first.returncode == 1, first.stderr
    done = auditor("run", settings_with(platform, '[report]\nmetrics = "auditor.prom"\n'), "--resume")
    assert (done.returncode, done.stdout) == (0, first.stdout)
    assert (platform.settings.parent / "auditor.prom").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_webhook_leaves_the_run_intact(platform: Platform, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        settings = settings_with(platform, notify())
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}"
        process = subprocess.Popen(
            command(("run", settings, "--out", settings.parent / "runs", "--hooks")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"SIGNING": SIGNING, "HOOK": address},
        )
        connection, _ = silent.accept()
        process.send_signal(number)
        out, said = process.communicate(timeout=10)
        connection.close()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert json.loads(Path(out.strip(), "run.json").read_text())["state"] == "complete"


def test_a_message_that_was_delivered_before_a_kill_is_not_sent_again(auditor: Auditor, platform: Platform) -> None:
    with receiving() as receiver, receiving() as other, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        other.file.write_text(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        settings = settings_with(platform, receiver.toml(), other.toml().replace('"hook"', '"other"'))
        with forked.serving("run", settings, cwd=platform.settings.parents[1]) as (process, _):
            connection, _ = silent.accept()
            (folder,) = (path.parent for path in platform.settings.parent.rglob("run.json"))
            while not (folder / ".hooks").read_text():
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            connection.close()
        other.file.write_text(other.address)
        done = auditor("resume", folder)
    assert done.returncode == 0, done.stderr
    assert "notified other" in done.stderr.splitlines()
    assert (len(receiver.bodies), len(other.bodies)) == (1, 1)
    assert receiver.event["id"] == other.event["id"] == other.headers[0]["webhook-id"]
    assert not (folder / ".hooks").exists()


@pytest.mark.slow
def test_metrics_of_a_run_go_to_a_file_or_to_standard_output(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    folder = auditor("run", platform.settings).stdout.strip()
    shown = auditor("metrics", folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert auditor("metrics", Path(folder).parent, "-o", "-").stdout == shown.stdout
    assert auditor("metrics", folder, "-o", "auditor.prom").stdout == ""
    assert (tmp_path / "auditor.prom").read_text() == shown.stdout
    assert "auditor_policy" not in shown.stdout
    (tmp_path / "rules.toml").write_text(VIOLATED)
    judged = auditor("metrics", folder, "--rules", "rules.toml")
    assert judged.returncode == 0
    assert 'auditor_policy_rule{rule="latest ble",run="simulated",severity="error",verdict="violated"} 1.0' in (
        judged.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("nowhere",), 2, "nowhere: no such run"),
        (("audits", "--rules", "none.toml"), 2, "none.toml: cannot be read"),
        (("audits", "-o", "none/auditor.prom"), 3, "none/auditor.prom: cannot be written: No such file or directory"),
    ],
)
def test_unavailable_metrics_are_one_sentence(
    auditor: Auditor, platform: Platform, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    assert auditor("run", platform.settings, "--out", "audits").returncode == 0
    done = auditor("metrics", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
