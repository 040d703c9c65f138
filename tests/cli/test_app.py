"""The other commands: check, demo, simulate, completion, help."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from auditor.cli.app import app
from auditor.simulator.world import World
from tests.cli.conftest import SECRET, Auditor, Platform, StartPlatform, command, settings_file

COMMANDS = (
    "check", "completion", "demo", "devices", "diff", "fleet", "history", "inventory", "metrics", "plan", "policy", "prune",
    "report", "resume", "run", "simulate", "sql", "verify",
)  # fmt: skip


def test_check_asks_once_per_account_and_tells_what_it_found(auditor: Auditor, platform: Platform) -> None:
    done = auditor("check", platform.settings)
    assert done.returncode == 0
    assert re.search(r"ok +simulated \(http://127\.0\.0\.1:\d+/\): 120 devices; answers in \d+ ms", done.stdout)


def test_check_of_a_refused_key_exits_with_3_and_names_the_cause(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    done = auditor("check", settings, env={"CANARY": "wrong"})
    assert done.returncode == 3
    assert "FAIL eu" in done.stdout
    assert "SignatureDoesNotMatch" in done.stdout


def test_check_of_a_key_that_is_not_set_exits_with_2(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    done = auditor("check", settings_file(tmp_path, platform.endpoint), env={"CANARY": ""})
    assert done.returncode == 2
    assert "the environment variable CANARY is not set" in done.stderr


def test_the_demonstration_shows_what_the_commands_that_read_runs_print(auditor: Auditor, tmp_path: Path) -> None:
    done = auditor("demo", "--devices", 400, "--nights", 2)
    assert done.returncode == 0, done.stderr
    there = sum(device.exists for device in World(400, large=0))
    assert f"complete: {there} devices" in done.stdout
    assert f"simulated: {there} devices of 4 products listed in" in done.stderr
    first, last = sorted((tmp_path / "audits").glob("*-demo"))
    assert f"$ auditor inventory audits/{last.name}\n" in done.stdout
    assert f"$ auditor diff audits/{first.name} audits/{last.name}\n" in done.stdout
    assert "upgraded" in done.stdout
    assert f"$ auditor devices audits/{last.name} --missing --limit 5\n" in done.stdout
    assert "$ auditor history audits --module default\n" in done.stdout
    assert f"$ auditor policy audits/{last.name} audits/demo-rules.toml\n" in done.stdout
    assert "The runs lie in audits:" in done.stdout
    assert (tmp_path / "audits" / "demo.html").read_text().startswith("<!doctype html>")
    assert all(auditor("verify", folder).returncode == 0 for folder in (first, last))
    assert json.loads((last / "run.json").read_text())["requests"]["retried"] > 0


def test_simulate_tells_how_to_reach_it_and_ends_on_a_signal(start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 5)
    assert platform.endpoint.startswith("http://127.0.0.1:")
    platform.process.send_signal(signal.SIGINT)
    assert platform.process.wait(10) == 0


def test_a_taken_port_is_one_sentence(auditor: Auditor, platform: Platform) -> None:
    port = platform.endpoint.rsplit(":", 1)[1].strip("/")
    done = auditor("simulate", "--port", port)
    assert done.returncode == 3
    assert done.stderr.startswith("auditor: the simulated platform cannot start:")


@pytest.mark.parametrize("option", [("--faults", 1.5), ("--latency", 50, 20), ("--devices", -1), ("--per-second", -1)])
def test_options_of_simulate_that_make_no_sense_are_refused(auditor: Auditor, option: tuple[object, ...]) -> None:
    done = auditor("simulate", "--port", 0, *option)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_progress_on_a_terminal_is_live_and_leaves_only_the_summary(tmp_path: Path, platform: Platform) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(("run", platform.settings, "--out", "runs")),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(ours)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"complete: 120 devices" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_the_commands(auditor: Auditor, shell: str) -> None:
    done = auditor("completion", shell)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_help_lists_every_command_and_version_is_told(auditor: Auditor) -> None:
    shown = auditor("--help").stdout
    assert all(re.search(rf"^ *{name} ", shown, re.MULTILINE) for name in COMMANDS)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", auditor("--version").stdout)


def test_every_command_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    names = {name for name in app if not name.startswith("-")}
    assert names == set(COMMANDS)
    assert all(f"auditor {name} --help" in document for name in names)


def test_a_reader_that_leaves_early_is_no_error(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    folder = auditor("run", platform.settings).stdout.strip()
    piped = " ".join(command(("inventory", folder, "--format", "jsonl")))
    done = subprocess.run(f"{piped} | head -n 1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["devices"] >= 1


def test_a_reader_that_leaves_early_does_not_change_the_verdict(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    (folder / "inventory.csv").write_text("tampered")
    piped = " ".join(command(("verify", folder)))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {piped} | true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_damaged_run_and_a_full_disk_are_one_sentence(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    full = " ".join(command(("inventory", folder, "--format", "csv")))
    done = subprocess.run(["bash", "-c", f"{full} > /dev/full"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "auditor: output: No space left on device\n")
    whole = (folder / "modules.parquet").read_bytes()
    (folder / "modules.parquet").write_bytes(whole[:20] + bytes(len(whole) - 40) + whole[-20:])
    for form in ("table", "json", "csv"):
        damaged = auditor("inventory", folder, "--format", form)
        assert damaged.returncode == 2
        assert "cannot be read" in damaged.stderr
        assert "Traceback" not in damaged.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full_do_not_hurt_an_audit(
    tmp_path: Path, platform: Platform, auditor: Auditor, closed: str
) -> None:
    shown = " ".join(command(("run", platform.settings, "--out", "runs")))
    done = subprocess.run(["bash", "-c", f"{shown} {closed}"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert auditor("verify", "runs").returncode == 0


def test_two_signals_end_a_run_that_waits_for_its_fleet(tmp_path: Path, platform: Platform) -> None:
    process = subprocess.Popen(
        command(("run", platform.settings, "--fleet", "-", "--out", "runs")),
        cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not list((tmp_path).glob("runs/.new-*/*.reading")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.communicate()


def test_a_secret_is_not_in_what_the_commands_show(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint)
    done = auditor("run", settings, "--log-level", "debug", env={"CANARY": SECRET})
    assert done.returncode == 0
    shown = [done.stdout, done.stderr, auditor("check", settings, env={"CANARY": SECRET}).stdout]
    shown += [path.read_bytes().decode("latin-1") for path in (tmp_path / done.stdout.strip()).iterdir()]
    assert not any(SECRET in text for text in shown)
